"""``appo completion bash``: a script with which a shell completes commands, options, components and recipes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from appo.commands.keys import components_of, keys_of
from appo.commands.parser import AppoParser
from appo.commands.recipes import recipe_names
from appo.commands.sources import arguments_of

TRAINING = ("fit", "validate", "test", "predict", "sft", "plan", "pilot", "bench")
"""Commands with the options of a training."""

_FUNCTIONS = {
    "report": ("appo.commands.report.command", "write_report"),
    "view": ("appo.commands.view.command", "view"),
    "show": ("appo.commands.view.show", "show"),
    "export": ("appo.commands.export.command", "export_policy"),
    "repeat": ("appo.commands.record.repeat", "repeat"),
}
"""Commands whose options are the arguments of a function: its module and its name."""

_SCRIPT = """\
_appo() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$before" = "=" ]; then before="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
  if [ "$current" = "=" ]; then current=""; fi
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  elif [ "$before" = ":" ] || [ "$current" = ":" ] || [ "$before" = "recipes" ]; then
    if [ "$current" = ":" ]; then current=""; fi
    words="{recipes}"
  else
    case "$before" in
{values}
      --config) words="recipe:" ;;
      *)
        case "${{COMP_WORDS[1]}}" in
{options}
        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _appo appo
"""

_FOR_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def completion(shell: Literal["bash", "zsh"], commands: Sequence[str]) -> str:
    """The script, to be sourced.

    Args:
        shell: that it is for.
        commands: of ``appo``.
    """
    options = {command: list(keys_of(command)) for command in TRAINING}
    options |= {command: arguments_of(*function) for command, function in _FUNCTIONS.items()}
    values: dict[str, list[str]] = {}
    for command in TRAINING:
        values |= components_of(command)
    script = _SCRIPT.format(
        commands=" ".join(commands),
        recipes=" ".join(recipe_names()),
        values=_cases({f"--{key}": names for key, names in values.items()}, "      "),
        options=_cases({name: [f"--{key}" for key in keys] for name, keys in options.items()}, "          "),
    )
    return _FOR_ZSH + script if shell == "zsh" else script


def main(args: list[str], commands: Sequence[str]) -> None:
    """Prints the script.

    Args:
        args: of the command: the shell.
        commands: of ``appo``.
    """
    parser = AppoParser(
        prog="appo completion",
        usage="appo completion [-h] {bash,zsh}",
        description="Prints a script that completes what one types.",
    )
    parser.add_argument("shell", choices=["bash", "zsh"], help="Shell that sources it.")
    sys.stdout.write(completion(parser.parse_args(args).shell, commands))


def _cases(words: Mapping[str, Sequence[str]], indent: str) -> str:
    """Branches of a `case`, those with the same words as one."""
    names: dict[str, list[str]] = {}
    for name, each in words.items():
        names.setdefault(" ".join(each), []).append(name)
    return "\n".join(f'{indent}{"|".join(group)}) words="{text}" ;;' for text, group in names.items())
