"""Measures what it gains to branch each prompt as soon as its roots are there, with `VLLMEngine` on a CPU.

An iteration of 16 prompts with 4 roots and 4 branches each, from roots to credit, once with a barrier (all roots end
before the first branch begins) and once without. Lengths are ragged: a limit of each request is drawn from a log-normal
distribution such that the longest is five times the median. It belongs to the request's seed, so that both sides sample
the same tokens, which is checked. The policy is a random Qwen2 of about 12 million parameters without an end token; it
evaluates all roots for `BranchingScore`, and the engine takes 32 sequences at once.

Both sides run in one process and take turns; figures are medians over rounds of seconds on the clock and of processor
seconds, and of the ratio in each round. A round that does not count comes first. `tail` is the share of the engine's
steps with at most a quarter of its places taken.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.step import Clock, in_a_process, limit_threads

_SIDES = {"barrier": True, "per_prompt": False}
_LONGEST = 5.0
"""Times the median."""


def lengths(seed: int, median: int) -> int:
    """The tokens of a response: log-normal, cut at the longest; one in forty is that long."""
    return max(1, round(median * min(_LONGEST, math.exp(random.Random(seed).gauss(0.0, math.log(_LONGEST) / 1.96)))))


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """The rounds of both sides, in a process of their own."""
    limit_threads(options["threads"])
    import torch

    from appo.engines import VLLMEngine
    from appo.tools import ToolRunner

    folder = Path(tempfile.mkdtemp())
    make_policy(folder)
    engine, runner = VLLMEngine(max_batch_size=options["batch"], max_length=2048, cache_gib=1.0), ToolRunner([])
    engine.start(str(folder))
    runner.start()
    submit, step = engine.submit, engine.step
    taken: list[int] = []
    engine.submit = lambda request: submit(  # type: ignore[method-assign]
        replace(request, max_tokens=min(request.max_tokens, lengths(request.seed, options["median"])))
    )

    def watched_step() -> Any:
        """A step; what is over counts as ended by the policy, or the agent would go on with it."""
        taken.append(engine.num_in_flight)
        return [replace(completion, finish_reason="eos") for completion in step()]

    engine.step = watched_step  # type: ignore[method-assign]
    collect = _collecting(folder, engine, runner, options)
    rounds: list[dict[str, Any]] = []
    for number in range(options["rounds"] + 1):
        order = list(_SIDES) if number % 2 else list(_SIDES)[::-1]
        measured: dict[str, Any] = {}
        sampled = {}
        for side in order:
            engine.update_weights(_weights(folder), 2 * number + order.index(side) + 1)  # empties the prefix cache
            taken.clear()
            clock = Clock()
            data = collect(number, _SIDES[side])
            wall_s, processor_s = clock.read()
            measured[side] = {
                "wall_s": wall_s,
                "processor_s": processor_s,
                "tail": sum(num <= options["batch"] // 4 for num in taken) / len(taken),
                "steps": len(taken),
            }
            sampled[side] = [trajectory.token_ids for trajectory in data.trajectories]
            measured["tokens"] = sum(trajectory.num_own_tokens for trajectory in data.trajectories)
        same = [torch.equal(one, other) for one, other in zip(*sampled.values(), strict=True)]
        measured["equal"] = sum(same) / len(same)
        rounds.append(measured)
    engine.stop()
    runner.stop()
    return {"rounds": rounds[1:]}


def make_policy(folder: Path, mean_length: float | None = None) -> None:
    """A random Qwen2, and the tokenizer of the tiny policy.

    Args:
        folder: to save it in.
        mean_length: of its responses, whose lengths are geometric; None gives it nothing that ends one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from appo.policy.saving import save_policy
    from appo.sft import TinyPolicy, WorldConversations

    tokenizer = TinyPolicy(WorldConversations()).build_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=None if mean_length is None else tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    if mean_length is None:
        drop_ends(tokenizer)
    else:
        _end_after(model, tokenizer.eos_token_id, mean_length)
    save_policy(model, tokenizer, folder)


def drop_ends(tokenizer: Any) -> None:
    """Leaves the tiny policy's tokenizer nothing that ends a response: not what ends a turn of its chat template."""
    tokenizer.chat_template = tokenizer.chat_template.replace(tokenizer.eos_token, "")
    tokenizer.eos_token = None


def _end_after(model: Any, end: int, mean_length: float) -> None:
    """Makes the end token about equally likely everywhere: the first channel is a bias that no layer writes to."""
    import torch

    decoder, head = model.get_decoder(), model.get_output_embeddings()
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 1.0
        for layer in decoder.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        head.weight[:, 0] = 0.0
        head.weight[end] = 0.0
        hidden = decoder(torch.randint(len(head.weight), (4, 256)), use_cache=False)[0]
        others = (head(hidden).exp().sum(-1) - 1.0).log().mean()
        head.weight[end, 0] = (others - math.log(mean_length - 1.0)) / hidden[..., 0].mean()


def _weights(folder: Path) -> Any:
    from appo.policy.loading import load_policy
    from appo.policy.saving import named_weights

    return named_weights(load_policy(str(folder), "float32"))


def _collecting(folder: Path, engine: Any, runner: Any, options: dict[str, Any]) -> Any:
    """Collects the iteration of a number, with or without the barrier."""
    import torch
    from transformers import AutoTokenizer

    from appo.advantages import ProceduralAdvantage
    from appo.core.trajectory import Prompt
    from appo.engines import SamplingParams
    from appo.policy.evaluation import evaluate_batch
    from appo.policy.loading import load_policy
    from appo.policy.log_probs import PolicyLogProbs
    from appo.rewards import FunctionReward, RewardRunner
    from appo.rollouts import AgentLoop, Branching, CandidateFilter, Collector, Limits, PhaseTimer, Policy
    from appo.rollouts.tree import Tree
    from appo.scorers import BranchingScore
    from appo.tools import TagSyntax

    tokenizer = AutoTokenizer.from_pretrained(folder)
    evaluator = PolicyLogProbs(load_policy(str(folder), "float32"))

    def evaluate(batch: Any) -> Any:
        missing = (~batch.is_evaluated).nonzero()[:, 0]
        device = torch.device("cpu")
        values = evaluate_batch(evaluator, batch.select(missing), 4096, device, torch.no_grad)
        return batch.evaluated(missing, *values, 0)

    draw = random.Random(0)
    prompt_ids = [tuple(draw.randrange(10, 500) for _ in range(64)) for _ in range(options["prompts"])]
    prompts = [Prompt(str(number), "", token_ids, ("",)) for number, token_ids in enumerate(prompt_ids)]
    agent = AgentLoop(engine, tokenizer, runner, TagSyntax(), Limits(math.ceil(_LONGEST * options["median"]) + 1, 0, 1))

    def collect(iteration: int, in_lockstep: bool) -> Any:
        collector = Collector(
            agent=agent,
            policy=Policy(evaluate),
            scorer=BranchingScore(),
            advantage=ProceduralAdvantage(),
            reward=RewardRunner(FunctionReward(even)),
            branching=Branching(2 * options["roots"], options["roots"], parents="any", min_remaining=0.0),
            candidates=CandidateFilter(tokenizer),
            sampling=SamplingParams(),
            seed=0,
            timer=PhaseTimer(),
            in_lockstep=in_lockstep,
        )
        return collector.collect([Tree(prompt) for prompt in prompts], iteration)

    return collect


def even(trajectory: Any) -> float:
    """The share of sampled tokens whose id is even."""
    return float((trajectory.token_ids[trajectory.response_mask] % 2 == 0).float().mean())


def table(rounds: Sequence[dict[str, Any]]) -> str:
    """The medians as Markdown."""
    lines = [
        "| | seconds | processor seconds | steps of the engine | of these at most a quarter full |",
        "|---|---:|---:|---:|---:|",
    ]
    for side in _SIDES:
        names = ("wall_s", "processor_s", "steps", "tail")
        seconds, processor, steps, tail = (statistics.median(each[side][name] for each in rounds) for name in names)
        lines.append(f"| {side} | {seconds:.2f} | {processor:.2f} | {steps:.0f} | {tail:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table and writes the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--roots", type=int, default=4)
    parser.add_argument("--median", type=int, default=80, help="tokens of a response")
    parser.add_argument("--batch", type=int, default=32, help="sequences that the engine generates at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of branching.json")
    options = vars(parser.parse_args())
    folder = options.pop("out")
    rounds = in_a_process(measure, options)["rounds"]
    print(table(rounds))
    ratios = {
        name: [each["per_prompt"][name] / each["barrier"][name] for each in rounds]
        for name in ("wall_s", "processor_s", "steps")
    }
    for name, values in ratios.items():
        print(f"per prompt / barrier, {name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    print(f"trajectories that are equal on both sides: {min(each['equal'] for each in rounds):.1%}")
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    results = {"options": options, **machine, "ratios": ratios, "rounds": rounds}
    (folder / "branching.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
