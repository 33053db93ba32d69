"""The options of ``appo plan``: those of ``appo fit``, read and planned instead of started."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from appo.commands.errors import in_one_line
from appo.commands.lightning_cli import AppoCLI
from appo.commands.plan.command import describe, policy_config, settings_of_run
from appo.commands.plan.devices import DEVICES
from appo.commands.plan.hours import describe_hours, is_measured_by, plan_hours, workload
from appo.commands.plan.plan import plan_memory
from appo.commands.plan.probe import Probe
from appo.commands.plan.shapes import SHAPES
from appo.commands.plan.size import PolicySize
from appo.commands.plan.time import Lengths


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
        parser.add_argument(
            "--hours",
            type=bool,
            default=False,
            help="Also says how long the run takes, by lengths or a probe.",
        )
        parser.add_argument(
            "--lengths",
            type=Lengths | None,
            default=None,
            help="Of trajectories, in tokens. `null`: as in the probe.",
        )
        parser.add_argument(
            "--probe", type=Path | None, default=None,
            help="Folder of a short run: of the same policy with the same engine, its seconds count; of another, its "
            "lengths alone.",
        )  # fmt: skip
        parser.add_argument(
            "--gpu", type=str, default="H100", help=f"Kind of the devices: {', '.join(DEVICES)}. Counts for the hours."
        )
        parser.add_argument("--price", type=float, default=0.0, help="Of a GPU and hour, in any currency.")

    def instantiate_classes(self) -> None:
        with in_one_line():
            probe = self._probe()
            parts = self.parser.instantiate_classes(self.config)
            config = policy_config(parts.model.policy_folder, self.config.shape)
            run = settings_of_run(
                parts.model, parts.data, parts.rollout, self.config.trainer, config,
                self.config.gpus, self.config.gpu_memory_gib,
            )  # fmt: skip
            size = PolicySize.of_config(config, parts.model.lora)
            sys.stdout.write(f"{describe(plan_memory(size, run))}\n")
            if self.config.hours:
                lengths = probe.lengths if probe is not None and parts.lengths is None else parts.lengths
                work = workload(parts.model, parts.data, parts.rollout, lengths)
                is_measured = probe is not None and self._is_measured_by(probe)
                plan = plan_hours(size, run, work, DEVICES[self.config.gpu], probe if is_measured else None)
                told = describe_hours(plan, run, self.config.trainer, self.config.price, is_measured)
                sys.stdout.write(f"\n{told}\n")

    def _probe(self) -> Probe | None:
        """The short run, if there is one.

        Raises:
            ValueError: if the options on hours do not fit together.
        """
        config = self.config
        if not config.hours:
            return None
        if config.gpu not in DEVICES:
            raise ValueError(f"gpu must be one of {', '.join(DEVICES)}, got {config.gpu!r}")
        if config.lengths is None and config.probe is None:
            raise ValueError("hours must be planned with lengths or a probe, got neither")
        return None if config.probe is None else Probe.of(config.probe)

    def _is_measured_by(self, probe: Probe) -> bool:
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_validation=True))
        return self.config.shape is None and is_measured_by(probe, dumped)
