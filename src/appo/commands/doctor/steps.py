"""The steps of the doctor, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One check, run in a process of its own.

    Attributes:
        name: as ``--only`` takes it.
        title: what is checked.
        function: of a module beside this one, as ``module:function``; takes a `Machine` and the `Figures` to fill in.
        limit_s: seconds after which it is ended.
    """

    name: str
    title: str
    function: str
    limit_s: float = 120.0


STEPS = (
    Step("versions", "versions of packages and driver, devices, what is installed", "versions:versions"),
    Step("loading", "a policy is built, saved and loaded on every device", "policies:loading"),
    Step("attention", "attention kernels by dtype, with grouped heads: time and peak", "kernels:attention"),
    Step("log-probs", "chunked log-probs against plain ones: values, time and peak", "kernels:log_probs"),
    Step("packing", "packed rows against padded ones and float64: values, time and peak", "passes:packing"),
    Step("trees", "rows that share tokens as trees against flat rows: values, time and peak", "passes:trees"),
    Step("sampling", "no token of probability 0 is ever drawn", "kernels:sampling"),
    Step("optimizer", "AdamW one by one, foreach and fused: values, time and peak", "kernels:optimizer"),
    Step("hf-32", "HFEngine in float32 samples, sleeps, takes 20 updates; what it leaves", "engines:hf_engine_32"),
    Step("hf-bf16", "HFEngine in bfloat16, likewise", "engines:hf_engine_bf16"),
    Step("vllm-32", "VLLMEngine in float32, likewise", "engines:vllm_engine_32", 300.0),
    Step("vllm-bf16", "VLLMEngine in bfloat16, likewise", "engines:vllm_engine_bf16", 300.0),
    Step("iteration-32", "two iterations in 32-true, peaks against the plan", "runs:iteration_32", 240.0),
    Step("iteration-bf16", "two iterations in bf16-mixed, peaks against the plan", "runs:iteration_bf16", 240.0),
    Step("resume", "a run goes on from its checkpoint", "runs:resume", 240.0),
    Step("lora", "an adapter is trained and merged", "runs:lora", 240.0),
    Step("fsdp2", "one device with strategy fsdp2, and on from its sharded checkpoint", "runs:fsdp2", 240.0),
    Step("offload", "one device with shards that rest on the CPU", "runs:offload", 240.0),
    Step("compile", "compiled layers compute what plain ones do", "passes:compiled", 300.0),
    Step("other-device", "a run on a device that is not number 0", "ranks:other_device", 240.0),
    Step("ranks-ddp", "two processes, and an evaluation in which metrics differ", "ranks:ddp", 240.0),
    Step("ranks-fsdp2", "two processes with shards, and on from their checkpoint", "ranks:fsdp2", 300.0),
    Step("ranks-offload", "two processes with shards that rest on the CPU", "ranks:offload", 240.0),
    Step("ranks-tensor", "two processes of a tensor-parallel group", "ranks:tensor_parallel", 240.0),
    Step("ranks-engine", "collectives of two processes work after an engine has stopped", "ranks:engine_stop", 300.0),
    Step("ranks-kill", "one of two processes is killed: the run ends", "ranks:killed", 240.0),
    Step("ranks-stop", "one of two processes is stopped: the run ends with an error", "ranks:stopped", 240.0),
)
