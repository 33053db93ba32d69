"""The options of ``appo plan``: those of ``appo fit``, read and planned instead of started."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser

from appo.commands.errors import in_one_line
from appo.commands.lightning_cli import AppoCLI
from appo.commands.plan.command import describe, policy_config, settings_of_run
from appo.commands.plan.plan import plan_memory
from appo.commands.plan.shapes import SHAPES
from appo.commands.plan.size import PolicySize


class PlanCLI(AppoCLI):
    """The settings of a run without a trainer, which would look for the devices that the plan is for."""

    def __init__(self, command: str, args: Sequence[str]) -> None:
        super().__init__(command, args, method="fit")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--gpus", type=int | None, default=None, help="Of the trainer. `null`: trainer.devices x trainer.num_nodes."
        )
        parser.add_argument("--gpu-memory-gib", type=float, default=80.0, help="Memory of one GPU.")
        parser.add_argument(
            "--shape", type=str | None, default=None, help=f"Plans for {', '.join(SHAPES)} instead of model.policy."
        )

    def instantiate_classes(self) -> None:
        with in_one_line():
            parts = self.parser.instantiate_classes(self.config)
            config = policy_config(parts.model.policy_folder, self.config.shape)
            run = settings_of_run(
                parts.model, parts.data, parts.rollout, self.config.trainer, config,
                self.config.gpus, self.config.gpu_memory_gib,
            )  # fmt: skip
            sys.stdout.write(f"{describe(plan_memory(PolicySize.of_config(config, parts.model.lora), run))}\n")
