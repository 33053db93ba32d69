"""``appo show``: a question's trees in the terminal, for people without a browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Literal

from appo.commands.inert import inert
from appo.commands.view.run import Run
from appo.commands.view.trees import Json
from appo.commands.view.values import TOKEN_VALUES, TokenValue

MORE, LESS = (230, 223, 216, 208), (195, 153, 111, 69)
"""Numbers of terminal colors, from pale to full: above the middle of a value, and below."""

Paint = Callable[[str, float | None], str]
"""A token's text, colored by its value."""


def show(
    run: Path,
    question: str | None = None,
    step: str | None = None,
    value: str = "entropy",
    policy: str | None = None,
    color: Literal["auto", "always", "never"] = "auto",
) -> str:
    """Prints the trajectories of a question and their branches, colored by a value.

    Args:
        run: folder of an ``appo fit`` or ``appo test``.
        question: id of it, or a part of its text. `null`: one whose branches fared differently.
        step: such as `iteration-3`, `validation-3`, `test-0`. `null`: the last iteration.
        value: of a token: `entropy`, `gain`, `score`, `advantage`, `credit`, `log_ratio`, `weight`, `loss`,
            `surprisal` or `version`.
        policy: folder or name of the policy whose tokenizer reads the tokens. `null`: that of the run.
        color: `auto` colors in a terminal, unless NO_COLOR is set.

    Returns:
        The text.

    Raises:
        FileNotFoundError: if the folder is none of a run with trajectories.
        ValueError: if there is no such step, question or value.
    """
    by_name = {each.name: each for each in TOKEN_VALUES}
    if value not in by_name:
        raise ValueError(f"value must be one of {', '.join(by_name)}, got {value!r}")
    found = Run(run, policy)
    keys = [each.key for each in found.steps()]
    key = found.last_iteration().key if step is None else step
    if key not in keys:
        raise ValueError(f"step must be one of {', '.join(keys)}, got {step!r}")
    prompts = found.index(key)["prompts"]
    page = found.tree(key, _number_of(prompts, question))
    is_painted = color == "always" or (color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    header = f"{found.name}, {key.replace('-', ' ')}, one of {len(prompts)} questions"
    return "\n".join([inert(header), *tree_lines(page, by_name[value], is_painted)])


def _number_of(prompts: Sequence[Json], question: str | None) -> int:
    if question is None:
        return next((i for i, prompt in enumerate(prompts) if _differs(prompt)), 0)
    for matches in (lambda prompt: prompt["id"] == question, lambda prompt: question in (prompt["question"] or "")):
        for number, prompt in enumerate(prompts):
            if matches(prompt):
                return number
    some = "; ".join(repr(prompt["question"] or prompt["id"]) for prompt in prompts[:3])
    raise ValueError(f"question must be the id or a part of one of {len(prompts)} such as {some}, got {question!r}")


def _differs(prompt: Json) -> bool:
    return len({each["reward"] for each in prompt["trajectories"] if each["parent"] is not None}) > 1


def tree_lines(page: Json, value: TokenValue, is_painted: bool) -> Iterator[str]:
    """The lines that show a question.

    Args:
        page: of `tree_page`.
        value: that tokens are colored by.
        is_painted: whether they are.
    """
    prompt, nodes = page["prompt"], page["trajectories"]
    yield inert(prompt["question"] or "The question is not public.")
    yield inert(f"expected: {' or '.join(prompt['answers'] or ['not public'])}; {len(nodes)} trajectories")
    paint, legend = _painter(nodes, value) if is_painted else ((lambda text, _: text), "")
    if legend:
        yield legend
    if not any(value.name in node["values"] for node in nodes):
        yield f"no {value.label} in this step's file"
    children: dict[int | None, list[Json]] = {}
    for node in nodes:
        children.setdefault(node["parent"], []).append(node)
    for number, root in enumerate(children[None], start=1):
        yield ""
        yield from _node_lines(page, root, str(number), children, value, paint)


def _node_lines(
    page: Json, node: Json, name: str, children: Mapping[int | None, list[Json]], value: TokenValue, paint: Paint
) -> Iterator[str]:
    own = sorted(children.get(node["id"], ()), key=lambda child: int(child["start"]))
    names = {child["id"]: f"{name}.{i}" for i, child in enumerate(own, start=1)}
    indent = "  " * name.count(".")
    where = "" if node["parent"] is None else f", from token {node['start']}, score {node['score'] or 0.0:.2f}"
    ending = "" if node["finish"] == "eos" else f", cut ({node['finish']})"
    kind = "root" if node["parent"] is None else "branch"
    reward = "none" if node["reward"] is None else f"{node['reward']:.2f}"
    yield inert(f"{indent}{kind} {name}: reward {reward}, {len(node['tokens'])} tokens{where}{ending}")
    for line in _text(page, node, {child["id"]: (child["start"], names[child["id"]]) for child in own}, value, paint):
        yield f"{indent}  {line}"
    for child in own:
        yield from _node_lines(page, child, names[child["id"]], children, value, paint)


def _text(page: Json, node: Json, marks: Mapping[int, tuple[int, str]], value: TokenValue, paint: Paint) -> list[str]:
    """The own text of a trajectory, with a mark where branches leave; what was not sampled is folded."""
    column: Sequence[float | None] = node["values"].get(value.name) or [None] * len(node["tokens"])
    text, position, end = "" if node["parent"] is None else "...", node["start"], node["start"] + len(node["tokens"])
    runs = dict(node["given"])
    while position < end:
        here = [name for start, name in marks.values() if start == position]
        text += "".join(f"⟦{name}⟧" for name in here)
        if position in runs:
            tools = [
                call["failure"] or call["tool"]
                for call in node["calls"]
                if position <= call["position"] < runs[position]
            ]
            text += inert(f"[{', '.join(tools) or 'not sampled'}: {runs[position] - position} tokens]")
            position = runs[position]
            continue
        place = position - node["start"]
        text += paint(inert(page["texts"][node["tokens"][place]], "\n"), column[place])
        position += 1
    return text.split("\n")


def _painter(nodes: Sequence[Json], value: TokenValue) -> tuple[Paint, str]:
    """Colors as the page does: fully from nearly the largest distance of a tree on."""
    middle = 1.0 if value.scale == "around_one" else 0.0
    distances = sorted(
        abs(each - middle) for node in nodes for each in node["values"].get(value.name, ()) if each is not None
    )
    full = distances[ceil(0.98 * (len(distances) - 1))] if distances else 0.0

    def paint(text: str, each: float | None) -> str:
        share = 0.0 if each is None or not full else min(1.0, abs(each - middle) / full)
        if each is None or share < 0.15:
            return text
        shades = MORE if each >= middle else LESS
        shade = shades[min(len(shades) - 1, int(share * len(shades)))]
        # A color does not go over the end of a line.
        return "\n".join(f"\x1b[30;48;5;{shade}m{part}\x1b[0m" if part else "" for part in text.split("\n"))

    ramp = [
        middle + full * share
        for share in ((-1.0, -0.5, 0.0, 0.5, 1.0) if value.scale != "from_zero" else (0.0, 0.5, 1.0))
    ]
    return paint, f"{value.label}: " + " ".join(paint(f" {each:.3g} ", each) for each in ramp)
