"""Measures `VLLMEngine` on a CPU: its loop, its prefix cache, and its weight updates.

- `loop`: tokens a second of the agent loop over `VLLMEngine`, without tools, against bare ``LLM.generate`` on the same
  prompts and lengths, each in a process of its own; the two take turns. Training needs a seed for every request and
  log-probs back, so ``generate`` is asked for them too; a second figure spares it both.
- `branches`: wall time of 8 branches from the middle of 512-token responses against 8 whole trajectories, and the share
  of the branches' reusable prefix that came from the cache.
- `weights`: largest difference of engine and trainer log-probs over 10,000 tokens after five updates; time of an update
  against ``safetensors.load_file`` of the same weights; and the memory an update takes above what was in use.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.step import in_a_process, write_report

_VOCAB_SIZE = 1700
_SIZES = {
    "3M": {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 576},
    "20M": {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "intermediate_size": 1024},
}
_VOCAB_SIZES = {"3M": _VOCAB_SIZE, "20M": 32_000}
_NUM_SEQUENCES = 64
_NUM_TOKENS = 128


def make_policy(folder: Path, size: str, seed: int = 0) -> None:
    """Saves a random Llama with a tokenizer that has no end token: every request runs to its limit."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        **_SIZES[size],
        vocab_size=_VOCAB_SIZES[size],
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{a} times {b} makes {a * b}." for a in range(60) for b in range(60)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)


def prompts_of(round_number: int, count: int, length: int = 60) -> list[tuple[int, ...]]:
    """Random prompts; other ones every round, so that nothing is in a cache."""
    import torch

    generator = torch.Generator().manual_seed(round_number)
    return [tuple(torch.randint(1, 1000, (length,), generator=generator).tolist()) for _ in range(count)]


def serve_loop(pipe: Connection, policy: str, threads: int) -> None:
    """Our side: samples whenever a round number comes, and answers with seconds."""
    with _agent_loop(policy, threads, _NUM_TOKENS) as loop:
        from appo.core.trajectory import Prompt
        from appo.engines import SamplingParams
        from appo.rollouts import RolloutRequest

        while (number := pipe.recv()) is not None:
            prompts = [Prompt(str(i), "", ids, ()) for i, ids in enumerate(prompts_of(number, _NUM_SEQUENCES))]
            begin = time.perf_counter()
            trajectories = loop.run(
                [RolloutRequest(prompt, seed) for seed, prompt in enumerate(prompts)], SamplingParams()
            )
            pipe.send([time.perf_counter() - begin])
            assert all(trajectory.response_length == _NUM_TOKENS for trajectory in trajectories)


def serve_generate(pipe: Connection, policy: str, threads: int) -> None:
    """The bare side, likewise."""
    _limit_threads(threads)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    from vllm import LLM, SamplingParams

    llm = LLM(policy, dtype="float32", enforce_eager=True, block_size=32, max_num_seqs=256, max_model_len=1024)
    common = {"temperature": 1.0, "max_tokens": _NUM_TOKENS, "ignore_eos": True}
    the_same = [SamplingParams(**common, seed=seed, logprobs=0) for seed in range(_NUM_SEQUENCES)]
    while (number := pipe.recv()) is not None:
        seconds = []
        for offset, sampling in ((0, the_same), (10_000, SamplingParams(**common))):
            prompts = [{"prompt_token_ids": list(prompt)} for prompt in prompts_of(number + offset, _NUM_SEQUENCES)]
            begin = time.perf_counter()
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            seconds.append(time.perf_counter() - begin)
            assert all(len(output.outputs[0].token_ids) == _NUM_TOKENS for output in outputs)
        pipe.send(seconds)


@contextmanager
def _agent_loop(policy: str, threads: int, max_tokens: int) -> Iterator[Any]:
    """Our loop over a started engine, without tools."""
    _limit_threads(threads)
    from transformers import AutoTokenizer

    from appo.engines import VLLMEngine
    from appo.rollouts import AgentLoop, Limits
    from appo.tools import TagSyntax, ToolRunner

    engine, runner = VLLMEngine(), ToolRunner([])
    engine.start(policy)
    runner.start()
    limits = Limits(max_tokens, max_tool_calls=0, max_result_tokens=1)
    yield AgentLoop(engine, AutoTokenizer.from_pretrained(policy), runner, TagSyntax(), limits)
    runner.stop()
    engine.stop()


def measure_loop(policy: str, rounds: int, threads: int) -> dict[str, float]:
    """Both sides in turn, after two rounds each that do not count."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for serve in (serve_loop, serve_generate):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, policy, threads), daemon=True))
        processes[-1].start()
        pipes.append(ours)
    rows: list[list[float]] = []
    for number in range(rounds + 2):
        rows.append([])
        for pipe in pipes:
            pipe.send(number)
            rows[-1] += pipe.recv()
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    loop_s, same_s, spared_s = (statistics.median(times) for times in zip(*rows[2:], strict=True))
    num_tokens = _NUM_SEQUENCES * _NUM_TOKENS
    return {
        "loop_tokens_per_s": num_tokens / loop_s,
        "generate_tokens_per_s": num_tokens / same_s,
        "ratio": same_s / loop_s,
        "ratio_spared": spared_s / loop_s,
    }


def measure_branches(policy: str, rounds: int, threads: int) -> dict[str, float]:
    """8 whole trajectories, then a branch from the middle of each."""
    whole_s, branch_s, reused, reusable = [], [], 0, 0
    with _agent_loop(policy, threads, 512) as loop:
        from appo.core.trajectory import BranchPoint, Prompt
        from appo.engines import SamplingParams
        from appo.rollouts import RolloutRequest

        for number in range(rounds + 1):
            starts = [RolloutRequest(Prompt(str(i), "", ids, ()), i) for i, ids in enumerate(prompts_of(number, 8))]
            begin = time.perf_counter()
            whole = loop.run(starts, SamplingParams())
            middle = time.perf_counter()
            points = [BranchPoint(trajectory, trajectory.prompt_length + 255, 0.0) for trajectory in whole]
            branches = loop.run([RolloutRequest(p.trajectory.prompt, 99, p) for p in points], SamplingParams())
            if number:
                whole_s.append(middle - begin)
                branch_s.append(time.perf_counter() - middle)
                reused += sum(branch.reused_tokens for branch in branches)
                reusable += sum(branch.reusable_tokens for branch in branches)
    ratios = [branch / whole for branch, whole in zip(branch_s, whole_s, strict=True)]
    return {
        "whole_s": statistics.median(whole_s),
        "branches_s": statistics.median(branch_s),
        "ratio": statistics.median(ratios),
        "prefix_cache_hit": reused / reusable,
    }


def measure_weights(folder: Path, size: str, rounds: int, threads: int) -> dict[str, float]:
    """Five updates and more, each with other weights."""
    _limit_threads(threads)
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from appo.engines import Request, VLLMEngine
    from appo.policy.log_probs import PolicyLogProbs
    from appo.policy.saving import named_weights

    policies = []
    for seed in range(2):
        make_policy(folder / f"{size}_{seed}", size, seed)
        policies.append(str(folder / f"{size}_{seed}"))
    engine = VLLMEngine()
    engine.start(policies[0])
    models = [AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32) for policy in policies]
    update_s, load_s, extra = [], [], 0
    for version in range(1, max(5, rounds) + 1):
        before = _reset_peak_memory()
        begin = time.perf_counter()
        engine.update_weights(named_weights(models[version % 2]), version)
        update_s.append(time.perf_counter() - begin)
        extra = max(extra, _peak_memory() - before)
        begin = time.perf_counter()
        # The file is mapped: only a copy has read it.
        tensors = load_file(Path(policies[version % 2]) / "model.safetensors")
        copies = [tensor.clone() for tensor in tensors.values()]
        load_s.append(time.perf_counter() - begin)
        del tensors, copies
        if version == 5:
            difference = _largest_difference(engine, PolicyLogProbs(models[1]), Request)
    engine.stop()
    largest = max(parameter.numel() * parameter.element_size() for parameter in models[0].parameters())
    return {
        "log_prob_difference": difference,
        "update_ms": 1e3 * statistics.median(update_s),
        "load_file_ms": 1e3 * statistics.median(load_s),
        "ratio": statistics.median(update_s) / statistics.median(load_s),
        "extra_mib": extra / 2**20,
        "largest_tensor_mib": largest / 2**20,
    }


def _largest_difference(engine, evaluate, make_request) -> float:  # type: ignore[no-untyped-def]
    """Over 10,240 sampled tokens."""
    import torch

    for number, prompt in enumerate(prompts_of(77, 80)):
        engine.submit(make_request(number, prompt, 128, seed=number))
    completions = []
    while engine.num_in_flight:
        completions += engine.step()
    prompts, worst = prompts_of(77, 80), 0.0
    for completion in completions:
        token_ids = torch.tensor([prompts[completion.id] + completion.token_ids])
        mask = torch.arange(token_ids.shape[1])[None] >= 60
        with torch.no_grad():
            log_probs, _ = evaluate(token_ids, mask)
        worst = max(worst, float((log_probs[mask] - torch.tensor(completion.behavior_log_probs)).abs().max()))
    return worst


def _reset_peak_memory() -> int:
    """Makes the memory in use the peak, and returns it, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_memory()


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _limit_threads(threads: int) -> None:
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.vllm_engine", description="VLLMEngine on a CPU.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of vllm_engine.json")
    parser.add_argument("--rounds", type=int, default=9, help="measured runs of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads of every process")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        policy = Path(name) / "policy"
        in_a_process(make_policy, policy, "3M")
        results["loop / LLM.generate"] = measure_loop(str(policy), options.rounds, options.threads)
        results["branches / whole"] = in_a_process(measure_branches, str(policy), options.rounds, options.threads)
        for size in _SIZES:
            results[f"weights {size}"] = in_a_process(
                measure_weights, Path(name), size, options.rounds, options.threads
            )
    for title, values in results.items():
        print(f"{title:20}", "  ".join(f"{key} {value:.4g}" for key, value in values.items()))
    write_report(options, "vllm_engine", results)


if __name__ == "__main__":
    main()
