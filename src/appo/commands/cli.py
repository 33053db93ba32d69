"""The command line: ``appo fit --config configs/appo.yaml``."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from jsonargparse import _typehints as typehints
from jsonargparse import auto_cli, set_parsing_settings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from transformers.utils.logging import disable_progress_bar

from appo.advantages import ADVANTAGES
from appo.commands.ablate import Resolved, ablate
from appo.commands.export import export_policy
from appo.commands.plan import SHAPES, PolicySize, describe, plan_memory, plan_of_run, policy_config
from appo.commands.report import write_report
from appo.core.registry import Registry
from appo.distributed.fsdp import OFFLOADING_BACKENDS, FSDP2Strategy
from appo.engines import ENGINES
from appo.losses import LOSSES
from appo.prompts import PROMPT_SOURCES
from appo.rewards import REWARDS
from appo.scorers import SCORERS
from appo.sft import CONVERSATION_SOURCES, SupervisedDataModule, SupervisedModule
from appo.tools import CALL_SYNTAXES, SEARCH_BACKENDS, TOOLS
from appo.training.callbacks import ExportPolicy, IterationProgress, RolloutCallback
from appo.training.datamodule import RolloutDataModule
from appo.training.module import APPOModule

log = logging.getLogger(__name__)

REGISTRIES: tuple[Registry[Any], ...] = (
    SCORERS,
    ADVANTAGES,
    LOSSES,
    REWARDS,
    TOOLS,
    SEARCH_BACKENDS,
    CALL_SYNTAXES,
    ENGINES,
    PROMPT_SOURCES,
    CONVERSATION_SOURCES,
)

_CLI_OPTIONS: dict[str, Any] = {
    "parser_kwargs": {"parser_mode": "omegaconf+"},
    "save_config_kwargs": {"overwrite": True},
    "auto_configure_optimizers": False,
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {"report": write_report, "export": export_policy}
"""Commands that are no training: their options are the arguments of a function, what it returns is printed."""

_CONNECTING_S = 120.0
"""Seconds that processes may take to connect, which is under the time-out of their collectives."""

_EXPECTED_WARNINGS = (
    "LightningCLI's args parameter",  # a command of ours may stand for one of Lightning's
    "Your `IterableDataset` has `__len__` defined",  # on purpose: see RolloutBuffer
    ".*isinstance.treespec, LeafSpec.. is deprecated",
    "torch.distributed is disabled, unavailable or uninitialized",  # shards are put together by one process
    "The '(train|val|test|predict)_dataloader' does not have many workers",  # batches are made in this process
)
"""What libraries warn of and this project does on purpose, or cannot change."""


class AppoParser(LightningArgumentParser):
    """Says in a few lines what is wrong, and which components there are where a name is unknown."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r"Expected a dot import path string: (\S+)", message)
        key = re.search(r'key "([\w.]+)"', message)
        if unknown and key:
            message = f"{key[1]}: {_unknown_component(key[1], unknown[1])}"
        sys.stderr.write(f"error: {message}\n")
        self.exit(2)


def _start_afresh(parser_or_action: Any, previous: Any, value: Any) -> None:
    """Another class in the place of a component begins with its own defaults.

    jsonargparse would hand on every option that both classes have, defaults of the former included: a `ClippedLoss` in
    the place of the `ProceduralLoss` would clip where that one does (https://github.com/mauvilsa/jsonargparse/issues/460).
    """
    if previous and previous.get("init_args") and previous["class_path"] != value["class_path"]:
        previous["init_args"] = type(previous)()


typehints.discard_init_args_on_class_path_change = _start_afresh  # it has no setting for this


def _unknown_component(key: str, name: str) -> str:
    """What the registry of the component that `key` takes has to say of a name that is not in it."""
    for word in reversed(key.split(".")):
        for registry in REGISTRIES:
            if registry.kind.split()[-1].startswith(word.rstrip("s")) and name not in registry:
                return registry.unknown(name)
    return f"no class has the import path {name!r}"


class RunFolderCLI(LightningCLI):
    """`LightningCLI` whose runs keep everything in one folder, ``trainer.default_root_dir``."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.setdefault("dump_header", [f"appo {version('appo')}"])
        parser = AppoParser(**kwargs)
        parser.add_argument("--config", action="config", help="YAML file; several are merged from left to right.")
        return parser

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            self.parser.error(str(error))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        config.default_root_dir = config.default_root_dir or "runs/appo"
        folder = Path(config.default_root_dir)
        if config.logger in (None, True):
            config.logger = [CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="tensorboard")]
        callbacks = list(config.callbacks or ())
        if config.enable_checkpointing is not False and not any(isinstance(c, ModelCheckpoint) for c in callbacks):
            # At the end of every iteration: by default Lightning waits for a validation, which may never come.
            checkpoints = ModelCheckpoint(
                folder / "checkpoints", filename="{epoch}", save_last="link", save_on_train_epoch_end=True
            )
            callbacks.append(checkpoints)
        config.callbacks = [*callbacks, *self.run_callbacks(with_progress=config.enable_progress_bar is not False)]
        trainer = super().instantiate_trainer(**kwargs)
        # What an epoch has logged is shown and saved after it was logged.
        ordered: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer, not declared
        ordered.sort(
            key=lambda callback: (isinstance(callback, ModelCheckpoint), isinstance(callback, IterationProgress))
        )
        return trainer

    def run_callbacks(self, with_progress: bool) -> list[L.Callback]:
        """What belongs to every run of the command."""
        return []


class AppoCLI(RunFolderCLI):
    """Reinforcement learning: a ``rollout`` section beside ``model``, ``data`` and ``trainer``."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        timeout_s = max(_CONNECTING_S, self._get(self.config_init, "rollout").rank_timeout_s)
        timeout = timedelta(seconds=timeout_s)
        if config.strategy == "ddp":
            config.strategy = DDPStrategy(timeout=timeout)
        elif config.strategy in ("fsdp", "fsdp2"):
            if config.strategy == "fsdp":
                log.info("trainer.strategy=fsdp shards with FSDP2, which has taken the place of torch's first FSDP")
            offloads = torch.cuda.is_available() and self._get(self.config_init, "model").sharding.cpu_offload
            config.strategy = FSDP2Strategy(
                process_group_backend=OFFLOADING_BACKENDS if offloads else None, timeout=timeout
            )
        return super().instantiate_trainer(**kwargs)

    def run_callbacks(self, with_progress: bool) -> list[L.Callback]:
        return [ExportPolicy(), *([IterationProgress()] if with_progress else [])]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(RolloutCallback, "rollout")
        parser.set_defaults(
            {
                "trainer.log_every_n_steps": 1,
                "model.loss": {"class_path": "ProceduralLoss"},
                "rollout.engine": {"class_path": "HFEngine"},
                "rollout.scorer": {"class_path": "BranchingScore"},
                "rollout.advantage": {"class_path": "ProceduralAdvantage"},
                "rollout.reward": {"class_path": "AnswerReward"},
                "rollout.syntax": {"class_path": "TagSyntax"},
            }
        )
        parser.link_arguments("model.policy", "data.tokenizer")
        parser.link_arguments("rollout.temperature", "model.temperature")


class UnstartedFit(AppoCLI):
    """Parses and builds what ``appo fit`` would train with, and leaves it at that."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": AppoCLI.subcommands()["fit"]}

    def fit(self, **kwargs: Any) -> None:
        """In the place of the trainer's."""


class PlanCLI(AppoCLI):
    """The settings of a run, read and planned instead of started."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--gpus", type=int | None, default=None, help="Of the trainer; none takes trainer.devices x num_nodes."
        )
        parser.add_argument("--gpu-memory-gib", type=float, default=80.0, help="Memory of one GPU.")
        parser.add_argument(
            "--shape", type=str | None, default=None, help=f"Plans for {', '.join(SHAPES)} instead of model.policy."
        )

    def instantiate_classes(self) -> None:
        # Without a trainer: it would look for the devices that the plan is for.
        try:
            parts = self.parser.instantiate_classes(self.config)
            config = policy_config(parts.model.policy_folder, self.config.shape)
            run = plan_of_run(
                parts.model, parts.data, parts.rollout, self.config.trainer, config,
                self.config.gpus, self.config.gpu_memory_gib,
            )  # fmt: skip
            sys.stdout.write(f"{describe(plan_memory(PolicySize.of_config(config), run))}\n")
        except (FileNotFoundError, ValueError) as error:
            self.parser.error(str(error))


class SupervisedCLI(RunFolderCLI):
    """Supervised training on demonstrations."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.policy", "data.tokenizer")


def run(args: list[str]) -> None:
    """Runs one command.

    Args:
        args: the command and its options, as on the command line.
    """
    for text in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=text)
    disable_progress_bar()  # of loading and saving weights: it would break the one over iterations
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every request
    if args[0] in _FUNCTIONS:
        sys.stdout.write(f"{auto_cli(_FUNCTIONS[args[0]], args=args[1:], as_positional=False)}\n")
        return
    # Interpolations see the merged config, not one file: an override reaches every ${...} that names it.
    set_parsing_settings(docstring_parse_attribute_docstrings=True, omegaconf_absolute_to_relative_paths=True)
    for registry in REGISTRIES:
        registry.load_plugins()
    if args[0] == "ablate":
        if status := ablate(args[1:], resolve_fit):
            raise SystemExit(status)
    elif args[0] == "sft":
        SupervisedCLI(SupervisedModule, SupervisedDataModule, args=["fit", *args[1:]], **_CLI_OPTIONS)
    elif args[0] == "plan":
        PlanCLI(APPOModule, RolloutDataModule, args=args[1:], run=False, **_CLI_OPTIONS)
    else:
        AppoCLI(APPOModule, RolloutDataModule, args=args, **_CLI_OPTIONS)


def resolve_fit(args: Sequence[str]) -> Resolved:
    """What ``appo fit`` would run with; says why and exits where it would refuse.

    Args:
        args: of the command.
    """
    logging.disable(logging.INFO)  # the trainer tells of devices whenever it is built
    try:
        cli = UnstartedFit(APPOModule, RolloutDataModule, args=["fit", *args], **_CLI_OPTIONS)
    finally:
        logging.disable(logging.NOTSET)
    return Resolved(cli.config_dump, cli.datamodule.source.splits)
