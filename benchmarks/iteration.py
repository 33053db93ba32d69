"""Measures whole iterations with `VLLMEngine` on a CPU: sample, score, branch, reward, update.

The policy is the tiny one of configs/sft.yaml with random weights, without an end token: each of 16 prompts gets 8
initial trajectories of 256 new tokens and 8 branches, of as many as are left behind the branch point. There are no
tools, so that every response is one turn and other frameworks can do the same.

- `overhead`: seconds of an iteration against the sum of two bare parts. ``engine`` is ``LLM.generate`` of vLLM on the
  same prompts and lengths, first the initial trajectories and then, from the same positions, the branches; training
  needs a seed for every request and log-probs back, so it is asked for both, and a second figure spares it both. A
  third, ``engine_once``, is one call for all of them, spared both, to which branches come with the prefixes that the
  iteration had sampled. ``model`` is forward and backward of the sum of the logits of the rows that the iteration
  trained, sorted and cut to length, at the best of several sizes of batches. Also the share that scoring, selection and
  advantages took.
- `scaling`: an iteration of twice as many prompts, and one of prompts and responses twice as long, against one.
- `trl`: an iteration of TRL's ``GRPOTrainer``, which generates and trains 16 completions of each of the same prompts
  with ``generate`` of transformers; float32, AdamW with the same learning rate, one optimizer step, no reference, no
  saving. It generates all rows at once, as it does on one device, and trains them in batches of `--trl-rows`. It needs
  ``trl`` in the environment; ``pip install trl==1.16.0`` is what the figures were taken with.

Each side has a process of its own, and they take turns; figures are medians over rounds, of seconds on the clock and of
processor seconds, which also mean something on a machine that others use. A round that does not count comes first.

``--policy FOLDER`` takes any policy, whose responses then end when it ends them; ``--medium`` a random one of about 12
million parameters without an end token, of which the model and not Python is what costs. ``--mean-length`` gives that
one an end token that is equally likely everywhere: lengths are geometric, and ``--tokens`` of 3.5 times the mean cut
them at five times their median.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.branching import drop_ends
from benchmarks.branching import make_policy as make_medium_policy
from benchmarks.step import Clock, in_a_process, limit_threads

_LEARNING_RATE = 1e-6
_BARE_TOKENS = (4096, 16384)
_MICROBATCH_TOKENS = 4096
_OWN_WORK = ("scoring_s", "advantages_s")
"""Scoring and selection, and advantages, by the names of their metrics."""


@dataclass(frozen=True)
class Setting:
    """What an iteration is made of."""

    policy: str
    prompts: int
    initial: int
    branches: int
    tokens: int
    prompt_tokens: int
    train_on: str
    from_middle: bool
    rounds: int
    threads: int


@dataclass(frozen=True)
class Plan:
    """What an iteration has sampled and trained, for those who repeat it.

    Attributes:
        prompts: of the initial trajectories.
        lengths: new tokens of each.
        origins: row of the parent and number of shared tokens of each branch.
        branch_lengths: new tokens of each.
        prefixes: what each shares with its parent.
        rows: that were trained.
    """

    prompts: list[list[int]]
    lengths: list[int]
    origins: list[tuple[int, int]]
    branch_lengths: list[int]
    prefixes: list[list[int]]
    rows: list[list[int]]

    @property
    def num_tokens(self) -> int:
        """That were sampled."""
        return sum(self.lengths) + sum(self.branch_lengths)


def make_policy(folder: Path) -> None:
    """Saves the tiny policy with nothing that ends a response."""
    from appo.policy.saving import save_policy
    from appo.sft import TinyPolicy, WorldConversations

    tiny = TinyPolicy(WorldConversations())
    tokenizer = tiny.build_tokenizer()
    model = tiny.build_model(tokenizer)
    drop_ends(tokenizer)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    save_policy(model, tokenizer, folder)


class Side:
    """A process that takes its turn whenever it is sent something."""

    def __init__(self, serve: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()  # or the end of the process would not be heard of

    def turn(self, order: Any = None) -> Any:
        """One run; returns what the process measured."""
        self.pipe.send(order)
        return self.pipe.recv()

    def stop(self) -> None:
        """Ends the process, whatever it waits for."""
        self.process.kill()
        self.process.join()


def serve_iterations(pipe: Any, setting: Setting) -> None:
    """A fit, one iteration a turn.

    Answers with seconds, sampled tokens, the seconds of its phases, and the plan of what it did.
    """
    limit_threads(setting.threads)
    import lightning as L

    from appo.monitoring.trajectory_files import read_trajectories

    folder = Path(tempfile.mkdtemp())

    class Turns(L.Callback):
        """Between two iterations, the trainer's own work included."""

        clock: Clock | None = None

        def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
            self.on_train_end(trainer)
            pipe.recv()
            self.clock = Clock()

        def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
            if self.clock is not None:
                seconds = self.clock.read()
                path = sorted(folder.glob("trajectories/iteration_*"))[-1]
                names = [name for name in trainer.callback_metrics if name.startswith("rollout/")]
                phases = {name[8:]: float(trainer.callback_metrics[name]) for name in names if name.endswith("_s")}
                records = list(read_trajectories(path))
                plan = _plan(records, trains_branches=setting.train_on != "roots")
                pipe.send((seconds, plan.num_tokens, phases, plan))

    module, data, rollout = _parts(setting)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=setting.rounds + 1,
        default_root_dir=folder,
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Turns(), rollout],
    )
    trainer.fit(module, datamodule=data)


def _parts(setting: Setting) -> tuple[Any, Any, Any]:
    import torch

    from appo.advantages import ProceduralAdvantage
    from appo.core.trajectory import RewardResult, Trajectory
    from appo.engines import VLLMEngine
    from appo.losses import ProceduralLoss
    from appo.rewards import Reward
    from appo.rollouts import Branching, Limits
    from appo.scorers import BranchingScore, Scorer, Scores
    from appo.tools import TagSyntax
    from appo.training.callbacks import RolloutCallback
    from appo.training.module import APPOModule

    class EvenTokens(Reward):
        """The share of sampled tokens whose id is even: random policies differ in it."""

        def __call__(self, trajectory: Trajectory) -> RewardResult:
            return RewardResult(float((trajectory.token_ids[trajectory.response_mask] % 2 == 0).float().mean()))

    class Middle(Scorer):
        """Prefers the middle of a response; log-probs are taken for it all the same."""

        def __call__(self, batch: Any, context: Any) -> Scores:
            middle = (batch.prompt_lengths + batch.lengths).unsqueeze(-1) / 2
            distance = (torch.arange(batch.token_ids.shape[1]) - middle).abs()
            return Scores((-distance).masked_fill(~batch.response_mask, float("-inf")))

    module = APPOModule(
        setting.policy,
        ProceduralLoss(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=_LEARNING_RATE, fused=True),
        max_tokens_per_microbatch=_MICROBATCH_TOKENS,
    )
    rollout = RolloutCallback(
        engine=VLLMEngine(max_length=_longest(setting) + setting.tokens),
        scorer=Middle() if setting.from_middle else BranchingScore(),
        advantage=ProceduralAdvantage(),
        reward=EvenTokens(),
        syntax=TagSyntax(),
        branching=Branching(
            setting.initial + setting.branches,
            setting.initial,
            selection="per_trajectory" if setting.from_middle else "per_prompt",
            train_on=setting.train_on,  # type: ignore[arg-type]
        ),
        limits=Limits(max_response_tokens=setting.tokens),
    )
    return module, _data(setting), rollout


def _data(setting: Setting) -> Any:
    from transformers import AutoTokenizer

    from appo.prompts import WorldQuestions
    from appo.training.datamodule import RolloutDataModule

    tokenizer = AutoTokenizer.from_pretrained(setting.policy)

    class LongQuestions(WorldQuestions):
        """As many questions in one as have so many tokens together."""

        def load(self, split: Any) -> Sequence[Any]:
            questions = super().load(split)
            if not setting.prompt_tokens:
                return questions
            long = []
            for number, question in enumerate(questions[: 8 * setting.prompts * (setting.rounds + 1)]):
                text, following = question.text, number
                while len(tokenizer.encode(text)) < setting.prompt_tokens:
                    following = (following + 1) % len(questions)
                    text += " " + questions[following].text
                kept = tokenizer.decode(tokenizer.encode(text)[: setting.prompt_tokens])
                long.append(replace(question, messages=({"role": "user", "content": kept},)))
            return long

    return RolloutDataModule(
        LongQuestions(),
        setting.policy,
        prompts_per_iteration=setting.prompts,
        max_prompt_tokens=_longest(setting),
    )


def _longest(setting: Setting) -> int:
    """Tokens of a prompt at most, with what a conversation adds to a question."""
    return 128 + setting.prompt_tokens


def _plan(records: Sequence[dict[str, Any]], trains_branches: bool) -> Plan:
    initial = [record for record in records if record["parent_id"] is None]
    branches = [record for record in records if record["parent_id"] is not None]
    shared = [record["branch_position"] + 1 for record in branches]
    prompts = [record["prompt"]["token_ids"] for record in initial]
    return Plan(
        prompts,
        [len(record["token_ids"]) - len(prompt) for record, prompt in zip(initial, prompts, strict=True)],
        [(record["parent_id"], length) for record, length in zip(branches, shared, strict=True)],
        [len(record["token_ids"]) - length for record, length in zip(branches, shared, strict=True)],
        [record["token_ids"][:length] for record, length in zip(branches, shared, strict=True)],
        [record["token_ids"] for record in (records if trains_branches else initial)],
    )


def serve_engine(pipe: Any, setting: Setting) -> None:
    """Bare vLLM on the requests of the plan it is sent.

    Answers with seconds: with seeds and log-probs, without, and without and in one call.
    """
    limit_threads(setting.threads)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    from vllm import LLM, SamplingParams

    length = _longest(setting) + setting.tokens
    llm = LLM(
        setting.policy,
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_model_len=length,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        # On a CPU, vLLM fails where a request with a seed has its prompt computed in parts.
        enable_chunked_prefill=False,
    )

    def generate(prompts: list[list[int]], lengths: list[int], **options: Any) -> list[list[int]]:
        sampling = [
            SamplingParams(
                max_tokens=length,
                ignore_eos=True,
                detokenize=False,
                **{name: values[i] for name, values in options.items()},
            )
            for i, length in enumerate(lengths)
        ]
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    while True:
        plan: Plan = pipe.recv()
        seconds = []
        num = max(len(plan.prompts), len(plan.origins))
        for options in ({"seed": range(num), "logprobs": [0] * num, "flat_logprobs": [True] * num}, {}):
            llm.reset_prefix_cache()
            clock = Clock()
            responses = generate(plan.prompts, plan.lengths, **options)
            whole = [prompt + response for prompt, response in zip(plan.prompts, responses, strict=True)]
            branches = generate([whole[row][:end] for row, end in plan.origins], plan.branch_lengths, **options)
            seconds.append(clock.read())
            assert sum(map(len, responses + branches)) == plan.num_tokens
        llm.reset_prefix_cache()
        clock = Clock()
        generate(plan.prompts + plan.prefixes, plan.lengths + plan.branch_lengths)
        pipe.send([*seconds, clock.read()])


def serve_model(pipe: Any, setting: Setting) -> None:
    """Forward and backward of the model and nothing else, on rows it is sent; answers with seconds at each size."""
    limit_threads(setting.threads)
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(setting.policy, dtype=torch.float32).train()

    def batches(rows: Sequence[list[int]], max_tokens: int) -> Iterator[torch.Tensor]:
        """Padded with 0; nothing looks at what stands behind."""
        rows = sorted(rows, key=len, reverse=True)
        while rows:
            width = len(rows[0])
            num = max(1, max_tokens // width)
            yield torch.tensor([row + [0] * (width - len(row)) for row in rows[:num]])
            rows = rows[num:]

    while True:
        rows, seconds = pipe.recv(), []
        for max_tokens in _BARE_TOKENS:
            clock = Clock()
            for token_ids in batches(rows, max_tokens):
                model(input_ids=token_ids, use_cache=False).logits.sum().backward()
            seconds.append(clock.read())
            model.zero_grad(set_to_none=True)
        pipe.send(seconds)


def serve_trl(pipe: Any, setting: Setting, rows_at_once: int) -> None:
    """A training with ``GRPOTrainer``, one step a turn; answers with seconds and sampled tokens."""
    limit_threads(setting.threads)
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            pipe.recv()
            lengths.clear()
            self.clock = Clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            pipe.send((self.clock.read(), sum(lengths)))

    data, num_rows = _data(setting), setting.prompts * (setting.initial + setting.branches)
    data.setup("fit")
    tokenizer = AutoTokenizer.from_pretrained(setting.policy)
    lengths: list[int] = []
    # Texts encode to the very prompts; where nothing ends a response, the end token has an id that the model lacks.
    texts = [
        tokenizer.decode(prompt.token_ids)
        for number in range(setting.rounds + 1)
        for prompt in data.iteration_prompts(number)
    ]
    never_ends = tokenizer.eos_token is None
    if never_ends:
        tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    options = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=num_rows // rows_at_once,
        num_generations=setting.initial + setting.branches,
        max_completion_length=setting.tokens,
        learning_rate=_LEARNING_RATE,
        lr_scheduler_type="constant",
        max_steps=setting.rounds + 1,
        shuffle_dataset=False,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )

    def even_tokens(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        assert not never_ends or {*lengths} == {setting.tokens}
        return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]

    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(setting.policy, dtype=torch.float32),
        reward_funcs=even_tokens,
        args=options,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
    )
    trainer.add_callback(Turns())
    trainer.train()


@dataclass
class Times:
    """Seconds of one thing over rounds, on the clock and of processors."""

    taken: list[tuple[float, float]] = field(default_factory=list)

    def median(self, unit: int) -> float:
        """Of seconds on the clock (0) or of processors (1)."""
        return statistics.median(both[unit] for both in self.taken)


_UNITS = ("s", "cpu_s")


def _medians(times: dict[str, Times], ratios: dict[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, float]:
    """Medians of all times, and ratios of sums of medians, in both units."""
    results: dict[str, float] = {}
    for i, unit in enumerate(_UNITS):
        medians = {name: values.median(i) for name, values in times.items()}
        results |= {f"{name}_{unit}": value for name, value in medians.items()}
        for title, (above, below) in ratios.items():
            results[f"{title}, {unit}"] = sum(map(medians.get, above)) / sum(map(medians.get, below))
    return results


def measure_overhead(setting: Setting) -> dict[str, float]:
    """An iteration and its bare parts in turn."""
    sides = [Side(serve, setting) for serve in (serve_iterations, serve_engine, serve_model)]
    names = ("iteration", "engine", "engine_spared", "engine_once", *map("model_{}".format, _BARE_TOKENS))
    times = {name: Times() for name in names}
    phases: list[dict[str, float]] = []
    for number in range(setting.rounds + 1):
        seconds, _, its_phases, plan = sides[0].turn()
        taken = [seconds, *sides[1].turn(plan), *sides[2].turn(plan.rows)]
        if number:
            phases.append(its_phases)
            for values, both in zip(times.values(), taken, strict=True):
                values.taken.append(both)
    for side in sides:
        side.stop()
    model = min((f"model_{size}" for size in _BARE_TOKENS), key=lambda name: times[name].median(0))
    results = _medians(
        times,
        {
            "iteration / (engine + model)": (["iteration"], ["engine", model]),
            "iteration / (engine_spared + model)": (["iteration"], ["engine_spared", model]),
            "iteration / (engine_once + model)": (["iteration"], ["engine_once", model]),
        },
    )
    shares = [sum(phase[name] for name in _OWN_WORK) / phase["iteration_s"] for phase in phases]
    results["scoring, selection, advantages / iteration"] = statistics.median(shares)
    results |= {f"phase {name}": statistics.median(phase[name] for phase in phases) for name in sorted(phases[-1])}
    return {"tokens": plan.num_tokens, "rows": len(plan.rows), **results}


def measure_scaling(setting: Setting) -> dict[str, float]:
    """Iterations of as many prompts, of twice as many, and of prompts and responses twice as long in turn."""
    more = replace(setting, prompts=2 * setting.prompts)
    longer = replace(setting, prompt_tokens=2 * setting.prompt_tokens, tokens=2 * setting.tokens)
    sides = {"1x": setting, "2x prompts": more, "2x length": longer}
    return _measure_in_turn({name: Side(serve_iterations, each) for name, each in sides.items()}, setting.rounds)


def measure_trl(setting: Setting, rows_at_once: int) -> dict[str, float]:
    """Our iterations and TRL's in turn."""
    sides = {"iteration": Side(serve_iterations, setting), "trl": Side(serve_trl, setting, rows_at_once)}
    return _measure_in_turn(sides, setting.rounds)


def _measure_in_turn(sides: dict[str, Side], rounds: int) -> dict[str, float]:
    times = {name: Times() for name in sides}
    num_tokens: dict[str, list[int]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            seconds, sampled, *_ = side.turn()
            if number:
                times[name].taken.append(seconds)
                num_tokens[name].append(sampled)
    for side in sides.values():
        side.stop()
    below, *others = sides
    tokens = {f"{name}_tokens": statistics.median(values) for name, values in num_tokens.items()}
    return tokens | _medians(times, {f"{above} / {below}": ([above], [below]) for above in others})


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.iteration", description="Whole iterations on a CPU.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of iteration_<figure>.json")
    parser.add_argument("--only", choices=["overhead", "scaling", "trl"], help="measures one of the three")
    parser.add_argument("--policy", type=Path, help="model folder in the place of the tiny policy")
    parser.add_argument("--medium", action="store_true", help="a policy of 12 million parameters in its place")
    parser.add_argument("--mean-length", type=float, help="of the responses of that one, which then end by themselves")
    parser.add_argument("--prompts", type=int, default=16, help="of an iteration")
    parser.add_argument("--initial", type=int, default=8, help="initial trajectories of a prompt")
    parser.add_argument("--branches", type=int, default=8, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of a response, at most")
    parser.add_argument("--prompt-tokens", type=int, default=0, help="of a question; 0 takes them as they are")
    parser.add_argument("--train-on", default="roots", help="as `rollout.branching.train_on`")
    parser.add_argument("--from-middle", action="store_true", help="as many branches from each parent, from its middle")
    parser.add_argument("--rounds", type=int, default=5, help="measured iterations of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads of every process")
    parser.add_argument("--trl-rows", type=int, default=32, help="rows that GRPOTrainer trains at once")
    options = parser.parse_args()
    if options.mean_length is not None and not options.medium:
        parser.error(f"--mean-length is that of --medium, got {options.mean_length} without it")
    figures = [options.only] if options.only else ["overhead", "scaling", "trl"]
    if "trl" in figures and not importlib.util.find_spec("trl"):
        parser.error("trl must be installed for its figure (pip install trl==1.16.0); --only takes another one")
    with tempfile.TemporaryDirectory() as name:
        policy = options.policy or Path(name) / "policy"
        if options.policy is None:
            make = partial(make_medium_policy, mean_length=options.mean_length) if options.medium else make_policy
            in_a_process(make, policy)
        setting = Setting(
            str(policy),
            options.prompts,
            options.initial,
            options.branches,
            options.tokens,
            options.prompt_tokens,
            options.train_on,
            options.from_middle,
            options.rounds,
            options.threads,
        )
        options.out.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            if figure == "trl":
                values = measure_trl(setting, options.trl_rows)
            else:
                values = {"overhead": measure_overhead, "scaling": measure_scaling}[figure](setting)
            print(f"{figure}\n" + "\n".join(f"  {key:50} {value:.4g}" for key, value in values.items()), flush=True)
            report = {
                **vars(setting),
                "policy": str(options.policy or ("medium" if options.medium else "tiny")),
                "mean_length": options.mean_length,
                "machine": platform.machine(),
            }
            (options.out / f"iteration_{figure}.json").write_text(
                json.dumps({**report, "results": values}, indent=2) + "\n"
            )


if __name__ == "__main__":
    main()
