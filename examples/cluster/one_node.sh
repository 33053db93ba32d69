#!/usr/bin/env bash
# All GPUs of this machine: the policy in shards, and on each GPU an engine that sleeps while the policy is trained.
#   examples/cluster/one_node.sh --config recipe:appo_paper --model.policy Qwen/Qwen2.5-7B-Instruct ...
# Typed again, it goes on from its last checkpoint. APPO=echo prints the command.
set -euo pipefail
read -ra appo <<< "${APPO:-appo}"
GPUS=${GPUS:-$(nvidia-smi -L | wc -l)}
: "${RUN:=runs/appo}"
exec "${appo[@]}" fit "$@" \
    --trainer.strategy=fsdp2 --trainer.devices="$GPUS" --trainer.precision=bf16-mixed \
    --rollout.engine=VLLMEngine --model.gradient_checkpointing=true \
    --trainer.default_root_dir="$RUN" --ckpt_path=last
