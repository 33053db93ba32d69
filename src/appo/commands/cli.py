"""The command line: ``appo fit --config configs/appo.yaml``. Light until a command needs more."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import auto_cli, set_parsing_settings

from appo.commands.explain import explain
from appo.commands.known_keys import check_keys
from appo.commands.modules import search_folders
from appo.commands.parser import AppoParser
from appo.commands.recipes import check_start, recipes, with_paths

if TYPE_CHECKING:
    from appo.commands.ablate import Resolved
    from appo.commands.lightning_cli import AppoCLI

_EXPECTED_WARNINGS = (
    "Your `IterableDataset` has `__len__` defined",  # on purpose: see RolloutBuffer
    ".*isinstance.treespec, LeafSpec.. is deprecated",
    "Total length of `list` across ranks is zero",  # without questions to validate on
    "torch.distributed is disabled, unavailable or uninitialized",  # shards are put together by one process
    "The '(train|val|test|predict)_dataloader' does not have many workers",  # batches are made in this process
)
"""What libraries warn of and this project does on purpose, or cannot change."""


def run(args: list[str]) -> None:
    """Runs one command.

    Args:
        args: the command and its options, as on the command line.
    """
    # Sources are read for the docstrings of attributes, which takes a second.
    shows_options = any("help" in arg or "print_config" in arg for arg in args)
    set_parsing_settings(docstring_parse_attribute_docstrings=shows_options)
    command, *options = args
    options = with_paths(options)
    if command == "report":
        search_folders(options)

        from appo.commands.report import write_report

        _call(command, write_report, options)
    elif command == "view":
        from appo.commands.view import view

        _call(command, view, options, as_positional=True)
    elif command == "repeat":
        _configure_logging()
        from appo.commands.record.repeat import repeat

        _call(command, repeat, options)
    elif command == "show":
        from appo.commands.view import show

        _call(command, show, options)
    elif command == "new":
        from appo.commands.new import new

        _call(command, new, options, as_positional=True)
    elif command == "recipes":
        parser = AppoParser(prog="appo recipes", description="Lists the configs that come with the package.")
        parser.add_argument("name", nargs="?", default="", help="Of a recipe, which is printed.")
        sys.stdout.write(f"{recipes(parser.parse_args(options).name)}\n")
    elif command == "config":
        parser = AppoParser(
            prog="appo config",
            usage="appo config [-h] explain KEY",
            description="Says what an option is, and what the recipes make of it.",
        )
        parser.add_argument("action", choices=["explain"], help="What to do.")
        parser.add_argument("key", help="Of the option, such as rollout.branching.min_entropy, or the end of it.")
        sys.stdout.write(f"{explain(parser.parse_args(options).key)}\n")
    elif command == "export":
        from appo.commands.export import export_policy

        _call(command, export_policy, options)
    elif command == "ablate":
        _configure_logging()
        from appo.commands.ablate import ablate

        if status := ablate(options, resolve_fit):
            raise SystemExit(status)
    else:
        _run_trainer(command, options)


def _call(command: str, function: Callable[..., Any], options: list[str], as_positional: bool = False) -> None:
    """Prints what a function returns whose arguments are the options of a command."""
    result = auto_cli(
        function, args=options, as_positional=as_positional, parser_class=AppoParser, prog=f"appo {command}"
    )
    sys.stdout.write(f"{result}\n")


def _run_trainer(command: str, options: list[str]) -> None:
    check_keys(command, options)
    search_folders(options)
    if "LOCAL_RANK" not in os.environ:
        sys.stderr.write(f"appo {command}: loading torch, transformers and Lightning\n")

    from transformers.utils.logging import disable_progress_bar

    from appo.commands.components import load_plugins
    from appo.commands.lightning_cli import AppoCLI, SupervisedCLI

    _configure_logging()
    for text in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=text)
    disable_progress_bar()  # of loading and saving weights: it would break the one over iterations
    load_plugins()
    if command == "sft":
        SupervisedCLI(command, options).run()
    elif command == "plan":
        from appo.commands.plan.cli import PlanCLI

        if not any(option.startswith(("--shape", "--help", "-h", "--print_config")) for option in options):
            check_start(options)
        PlanCLI(command, options)
    elif command == "pilot":
        from appo.commands.pilot.cli import PilotCLI

        _run(PilotCLI(command, options), options)
    elif command == "bench":
        from appo.commands.bench.cli import BenchCLI

        _run(BenchCLI(command, options), options)
    else:
        _run(AppoCLI(command, options), options)


def _run(cli: AppoCLI, options: list[str]) -> None:
    """Starts what the options make sense for, if the policy that it begins with is there."""
    check_start(options)
    cli.run()


def _configure_logging() -> None:
    """To be called once Lightning is imported, which would print its lines a second time otherwise."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every request
    # Lightning advertises services where it finds them not installed.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith("💡 Tip: ")
    )


def resolve_fit(args: Sequence[str]) -> Resolved:
    """What ``appo fit`` would run with; says why and exits where it would refuse.

    Args:
        args: of the command.
    """
    check_keys("fit", args)
    search_folders(args)

    from appo.commands.ablate import Resolved
    from appo.commands.components import load_plugins
    from appo.commands.lightning_cli import AppoCLI

    load_plugins()
    logging.disable(logging.INFO)  # the trainer tells of devices whenever it is built
    try:
        cli = AppoCLI("fit", args)
    finally:
        logging.disable(logging.NOTSET)
    return Resolved(cli.config_dump, cli.datamodule.source.splits)
