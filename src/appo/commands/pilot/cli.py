"""The options of ``appo pilot``: those of ``appo fit``, and how much is measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

from appo.commands.errors import in_one_line
from appo.commands.lightning_cli import AppoCLI, writes_nothing
from appo.commands.pilot.callback import PilotCallback
from appo.commands.pilot.options import StudyOptions, check_vocabulary
from appo.commands.pilot.page import write_study
from appo.commands.pilot.records import FORMAT, StudyFolder
from appo.commands.specified_folder import decisive_options, weights_digest
from appo.core.extras import require_extra
from appo.prompts import Split
from appo.training.callbacks import RolloutCallback

_NO_MATTER = ("config", "out", "questions", "at_once", "verbose")
"""Options that do not decide about the result for a question."""


class PilotCLI(AppoCLI):
    """A test whose callback measures decisions."""

    def __init__(self, command: str, args: Sequence[str]) -> None:
        super().__init__(command, args, method="test")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--questions", type=int, default=64, help="Questions that are measured; all if fewer.")
        parser.add_argument(
            "--roots", type=int, default=4, help="Trajectories of each question whose decisions are measured."
        )
        parser.add_argument(
            "--positions", type=int, default=48, help="Decisions of each question, over its roots together."
        )
        parser.add_argument(
            "--continuations", type=int, default=16,
            help="Trajectories that begin at a decision and draw it, and all that follows, anew, in the mean: half of "
            "them go to the decisions of which the policy is not sure. Questions x positions x continuations is what a "
            "study costs: 49,152 by default.",
        )  # fmt: skip
        parser.add_argument("--split", type=Split, default="test", help="Where the questions are from.")
        parser.add_argument(
            "--influence", type=str | None, default=None,
            help="Import path package.module:name of a function that knows the influence of every token, as the scorer "
            "Oracle takes it: decisions that matter are measured first.",
        )  # fmt: skip
        parser.add_argument(
            "--later-policy", type=str | None, default=None,
            help="Hugging Face folder or name of what training has made of the policy: scorers that compare it with "
            "the one that sampled rank the same decisions with it, too.",
        )  # fmt: skip
        parser.add_argument(
            "--at-once", type=int, default=8, help="Questions that are sampled together, and saved together."
        )
        parser.add_argument(
            "--out", type=Path, default=Path("runs/pilot"), help="Folder; a study that is there goes on."
        )

    def instantiate_classes(self) -> None:
        with in_one_line():
            self.options = StudyOptions(**{name: self.config[name] for name in StudyOptions.__dataclass_fields__})
            check_vocabulary(self.options.later_policy, self.config.model.policy)
            require_extra("matplotlib", "the figures", "report")
            self.folder = StudyFolder(self.options.out, self._specification())
        super().instantiate_classes()

    def _specification(self) -> dict[str, Any]:
        """Every option that decides about the results, and which weights they are of."""
        weights = weights_digest(self.config.model.policy, self.config.ckpt_path, self.config.later_policy)
        return decisive_options(self.parser, self.config, _NO_MATTER) | {"weights": weights, "format": FORMAT}

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init.trainer
        config.default_root_dir = str(self.options.out)
        writes_nothing(config)
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.world_size != 1:
            raise ValueError(f"trainer.devices must be 1 for a pilot study, got {trainer.world_size} processes")
        return trainer

    def run_callbacks(self, with_progress: bool) -> list[L.Callback]:
        return [PilotCallback(self.options, self.folder)]

    def run(self) -> None:
        """Measures what is missing, and writes the page."""
        if len(self.folder.read()) < self.options.questions:
            # Whichever there are questions for: its loop has nothing to do.
            splits = self.datamodule.source.splits
            self.method = "validate" if self.options.split == "validation" or "test" not in splits else "test"
            super().run()
        rollout: RolloutCallback = self.config_init.rollout
        sys.stdout.write(f"{write_study(self.folder, self.options, max(1, rollout.branching.num_branches))}\n")
