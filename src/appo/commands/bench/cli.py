"""The options of ``appo bench``: those of ``appo test``, and which benchmarks are asked."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from appo.commands.bench.answers import AnswerFolder
from appo.commands.bench.callback import BenchCallback, Benchmark
from appo.commands.bench.page import write_results
from appo.commands.bench.panel import Panel, order_digest
from appo.commands.bench.suites import PHRASES, SUITES, configs_of
from appo.commands.errors import in_one_line
from appo.commands.lightning_cli import AppoCLI, writes_nothing
from appo.commands.modules import options_of
from appo.commands.specified_folder import decisive_options, weights_digest
from appo.prompts import BenchmarkQuestions
from appo.rewards import Reward
from appo.training.checks import check_positions

_NO_MATTER = ("config", "suite", "judge", "out", "panel", "at_once", "verbose", "ckpt_path", "weights_only")
"""Options that do not decide about the answer to a question: of a checkpoint the weights do, of a judge the reward."""

_ALL = "paper"


class BenchCLI(AppoCLI):
    """A test whose callback asks many benchmarks, each with its config behind those of the training."""

    def __init__(self, command: str, args: Sequence[str]) -> None:
        self._args = list(args)
        super().__init__(command, args, method="test")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--suite", type=str, default=_ALL,
            help=f"Suites ({', '.join(SUITES)}), benchmarks and configs of benchmarks, with commas between.",
        )  # fmt: skip
        parser.add_argument(
            "--judge", type=Reward | None, default=None,
            help=f"Says what is right where answers are phrases: {', '.join(sorted(PHRASES))}. `null`: equal text.",
        )  # fmt: skip
        parser.add_argument(
            "--at-once", type=int, default=64, help="Questions that are open at any time, with all their samples."
        )
        parser.add_argument(
            "--panel", type=Path | None, default=None,
            help="A panel.json of somebody else: other questions, another order or other seeds are an error.",
        )  # fmt: skip
        parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="Folder; a run that is there goes on.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with in_one_line():
            paths = configs_of(_suite(self._args))
        # The options of the command are the same in all; what a benchmark's config leaves open is the training's.
        super().parse_arguments(parser, self._with_config(next(iter(paths.values()))))
        with in_one_line():
            if self.config.at_once < 1:
                raise ValueError(f"at_once must be positive, got {self.config.at_once}")
        judge = self.config.judge
        judged = [] if judge is None else [f"--rollout.reward={json.dumps(judge.as_dict())}"]
        self._configs = {
            name: parser.parse_args(self._with_config(path, judged if name in PHRASES else ()))
            for name, path in paths.items()
        }
        self.config = next(iter(self._configs.values()))

    def _with_config(self, path: Path, judged: Sequence[str] = ()) -> list[str]:
        """The command line with a benchmark's config behind its own configs, and before its own options."""
        configs, options = split_configs(self._args)
        return [*configs, "--config", str(path), *judged, *options]

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        with in_one_line():
            check_files({name: config.data.source for name, config in self._configs.items()})
            self.benchmarks = [self._benchmark(name, config) for name, config in self._configs.items()]
            self.panel = Panel.of(self.benchmarks, self.config.rollout.seed)
            if self.config.panel is not None:
                self.panel.check(Panel.read(self.config.panel))
        self._callback.benchmarks = self.benchmarks

    def _benchmark(self, name: str, config: Namespace) -> Benchmark:
        parts = self.parser.instantiate_classes(config)
        # The trainer's own data is that of the first one; its reward is the trainer's to start and to stop.
        data = self.datamodule if config is self.config else parts.data
        rollout = parts.rollout
        check_positions(self.model, data, rollout.sampler.engine, rollout.limits)
        data.setup("test")
        specification = decisive_options(self.parser, config, _NO_MATTER) | {
            "weights": weights_digest(config.model.policy, config.ckpt_path),
            "questions": order_digest([prompt for batch in data.evaluation_batches("test") for prompt in batch]),
        }
        folder = AnswerFolder(self.config.out / name, specification)
        options = config.rollout.reward.get("init_args") or {}
        return Benchmark(name, data, rollout.sampler.reward, rollout.evaluation, folder, dict(options))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init.trainer
        config.default_root_dir = str(self.config.out)
        # The bars are the callback's own, one a benchmark.
        self._shows_progress = config.enable_progress_bar is not False
        writes_nothing(config)
        return super().instantiate_trainer(**kwargs)

    def run_callbacks(self, with_progress: bool) -> list[L.Callback]:
        self._callback = BenchCallback((), self.config.at_once, self._shows_progress)
        return [self._callback]

    def run(self) -> None:
        """Asks what is missing, and writes the tables."""
        if not all(benchmark.is_answered for benchmark in self.benchmarks):
            super().run()
        if self.trainer.is_global_zero:
            self.panel.write(self.config.out / "panel.json")
            sys.stdout.write(f"{write_results(self.config.out, self.config.model.policy, self.benchmarks)}\n")


def _suite(args: Sequence[str]) -> str:
    """What a command line names as suite: which configs are read depends on it."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--suite", default=_ALL)
    return str(parser.parse_known_args(args)[0].suite)


def check_files(sources: Mapping[str, Namespace]) -> None:
    """Makes sure that the files of all benchmarks are there.

    Args:
        sources: by the name of the benchmark, as configs have them.

    Raises:
        FileNotFoundError: if some are not; names all of them, and says of the first where to get it.
    """
    lacking = []
    for name, source in sources.items():
        if source.class_path.endswith(f".{BenchmarkQuestions.__name__}"):
            try:
                BenchmarkQuestions(**source.init_args).file()
            except FileNotFoundError as error:
                lacking.append((name, str(error)))
    if lacking:
        names = ", ".join(name for name, _ in lacking)
        raise FileNotFoundError(
            f"suite must name benchmarks whose files are there, got {names} without; {lacking[0][1]}"
        )


def split_configs(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The parts of a command line that name configs, and all others, each in their order."""
    options = list(options_of(args))
    configs = [arg for arg, config in options if config is not None]
    return configs, [arg for arg, config in options if config is None]
