"""The entry of ``appo`` and ``python -m appo``: light until a command needs more."""

from __future__ import annotations

import os
import signal
import sys

COMMANDS = {
    "fit": "train a policy with APPO or one of its baselines",
    "validate": "evaluate a policy on the validation questions",
    "test": "evaluate a policy on the test questions",
    "predict": "write the trajectories of a policy on the test questions",
    "bench": "ask a policy the questions of many benchmarks, and set the results beside those of the paper",
    "repeat": "start a run again as it was started, and say whether it came out the same",
    "ablate": "train combinations of options over seeds at the same budget of tokens, and compare them",
    "pilot": "draw tokens of a policy's trajectories anew to see which decide, and which scorer finds them",
    "report": "write a page of what a run has learned, what it took, what went wrong and what to try next",
    "view": "show the trees of a run in a browser, and follow it while it trains; or write a page that opens from disk",
    "show": "print the trajectories of a question and their branches in the terminal",
    "export": "write the policy of a checkpoint as a Hugging Face folder",
    "plan": "print the memory that a run takes on every GPU, before it starts",
    "doctor": "check step by step whether this machine can train, and say what to do where it cannot",
    "sft": "supervised fine-tuning of a policy on demonstrations, before reinforcement learning",
    "new": "write the folder of a task of one's own that runs as it stands",
    "config": "explain an option: `appo config explain KEY`",
    "completion": "print the script that completes commands and options in bash or zsh",
    "recipes": "list the configs that come with the package, or print one",
}

_INTERRUPTED = 128 + signal.SIGINT
"""Status of a run that a person has ended."""


def main() -> None:
    """Runs the command that the process was started with."""
    args = sys.argv[1:]
    if "--debug" in args:
        # In the environment, where processes that a command starts find it too.
        os.environ["APPO_DEBUG"] = "1"
        args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        return
    if args[0] == "--version":
        from appo import __version__

        sys.stdout.write(f"appo {__version__}\n")
        return
    from appo.commands.errors import in_one_line, refuse

    if args[0] not in COMMANDS:
        from appo.core.registry import did_you_mean

        refuse(f"no command is named {args[0]!r}{did_you_mean(args[0], COMMANDS)}; commands: {', '.join(COMMANDS)}")
    # Threads that wait for one another by spinning make a busy CPU ten times slower; read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with in_one_line():
        if args[0] == "doctor":  # says what is missing, so it must not need it
            from appo.commands.doctor.command import main as doctor

            raise SystemExit(doctor(args[1:]))
        if args[0] == "completion":
            from appo.commands.completion import main as complete

            complete(args[1:], list(COMMANDS))
            return
        from appo.commands.cli import run

        try:
            run(args)
        except SystemExit as end:
            if end.code == _INTERRUPTED:
                from appo.training.callbacks.termination import limit_end

                limit_end()  # what is left of the process may hang as well
            raise


def overview() -> str:
    """What `appo` alone prints."""
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: appo COMMAND [--config FILE ...] [--SECTION.OPTION VALUE ...]",
            "",
            *lines,
            "",
            "appo COMMAND --help   its options",
            "appo COMMAND --debug  the traceback of what ends in one line",
            "appo --version\n",
        ]
    )


if __name__ == "__main__":
    main()
