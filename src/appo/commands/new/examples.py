"""What a new task begins with: questions of a kind, and conversations that answer others of it with a tool."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

Kind = Literal["function", "mathematics", "search", "mcp"]

_FIRST = ("Nora", "Milo", "Vera", "Ben", "Cleo", "Will", "Rita", "Olaf", "Lena", "Hugo", "Iris", "Paul", "Dora", "Emil")
_LAST = (
    *("Field", "Klein", "Park", "Haas", "Lowe", "Okoye", "Stone", "Berg", "Costa", "Ito"),
    *("Novak", "Reed", "Silva", "Moreau", "Weber", "Adler", "Brandt", "Quist", "Tanaka", "Vance"),
)
_THINGS = ("shells", "stamps", "books", "coins", "cards", "apples")
_TOWNS = ("Riga", "Havana", "Oslo", "Lima", "Cairo", "Kyoto", "Quito", "Tunis", "Perth", "Turin", "Minsk", "Dakar")
_TRADES = ("baker", "pilot", "nurse", "judge", "miner", "actor", "clerk", "tailor", "farmer", "singer")

_WRONG_SHARE = 0.3
"""Of the conversations that call the tool with something else than they should: so much is left to learn."""


@dataclass(frozen=True)
class Example:
    """A question, and how a conversation answers it.

    Attributes:
        question: what is asked.
        answer: the right one.
        call: what the tool is called with.
        result: what the tool says to that.
        said: the answer of the conversation: by what the tool said, right or not.
    """

    question: str
    answer: str
    call: str
    result: str
    said: str

    def response(self, tag: str) -> str:
        """The assistant's turn, as rollouts write it.

        Args:
            tag: name of the tool.
        """
        return (
            f"<think> Ask </think><{tag}> {self.call} </{tag}> <result>\n{self.result}\n</result>"
            f"<think> Done </think><answer> \\boxed{{ {self.said} }} </answer>"
        )


@dataclass(frozen=True)
class Document:
    """A passage to search.

    Attributes:
        title: whom it is about.
        text: what it says.
    """

    title: str
    text: str


def examples(kind: Kind, number: int) -> list[Example]:
    """Examples of a kind with questions that differ, equal ones at each call.

    Args:
        kind: of the task.
        number: of examples, at most 500.
    """
    found: dict[str, Example] = {}
    drawn = _DRAWN[kind](random.Random(0))
    while len(found) < number:
        example = next(drawn)
        found.setdefault(example.question, example)
    return list(found.values())


def documents() -> list[Document]:
    """What the questions of the kind `search` are about."""
    rng = random.Random(1)
    return [
        Document(f"{first} {last}", f"{first} {last} lives in {rng.choice(_TOWNS)} and is a {rng.choice(_TRADES)}.")
        for first in _FIRST
        for last in _LAST
    ]


@dataclass(frozen=True)
class _Start:
    """How a story of numbers begins.

    Attributes:
        text: what there is.
        expression: what one calculates it with.
        number: how many that are.
        change: how many come, or go.
        events: how they come and go, by the operation.
    """

    text: str
    expression: str
    number: int
    change: int
    events: dict[str, str]


def _owned(rng: random.Random) -> _Start:
    """What somebody has."""
    name, things = rng.choice(_FIRST), rng.choice(_THINGS)
    number, change = sorted((rng.randint(10, 99), rng.randint(2, 99)), reverse=True)
    events = {"+": f"finds {change} more", "-": f"gives {change} away"}
    return _Start(f"{name} has {number} {things} and", str(number), number, change, events)


def _boxed(rng: random.Random) -> _Start:
    """What is in boxes, to be calculated in code."""
    rows, each, change = rng.randint(3, 12), rng.randint(3, 12), rng.randint(1, 9)
    verb = "is" if change == 1 else "are"
    events = {"+": f"{change} more {verb} found", "-": f"{change} {verb} given away"}
    text = f"There are {rows} boxes with {each} {rng.choice(_THINGS)} each, and"
    return _Start(text, f"{rows} * {each}", rows * each, change, events)


def _stories(rng: random.Random, draw: Callable[[random.Random], _Start]) -> Iterator[Example]:
    """Stories of numbers, the last of them to be added or subtracted."""
    while True:
        start = draw(rng)
        right = rng.choice("+-")
        taken = _strayed(rng, right, "+-")
        results = {"+": str(start.number + start.change), "-": str(start.number - start.change)}
        yield Example(
            f"{start.text} {start.events[right]}. How many are there now?",
            results[right],
            f"{start.expression} {taken} {start.change}",
            results[taken],
            results[taken],
        )


def _lookups(rng: random.Random) -> Iterator[Example]:
    """Questions about people who have a document each."""
    texts = {document.title: document.text for document in documents()}
    people = list(texts)
    while True:
        person = rng.choice(people)
        taken = _strayed(rng, person, people)
        town, trade = (texts[person].split()[4], texts[person].split()[-1].rstrip("."))
        said_town, said_trade = (texts[taken].split()[4], texts[taken].split()[-1].rstrip("."))
        asks_town = rng.random() < 0.5
        yield Example(
            f"In which town does {person} live?" if asks_town else f"What is the trade of {person}?",
            town if asks_town else trade,
            taken,
            f"{taken}: {texts[taken]}",
            said_town if asks_town else said_trade,
        )


def _strayed(rng: random.Random, right: str, choices: str | list[str]) -> str:
    """What is right, or now and then another choice."""
    others = [choice for choice in choices if choice != right]
    return rng.choice(others) if rng.random() < _WRONG_SHARE else right


_DRAWN: dict[Kind, Callable[[random.Random], Iterator[Example]]] = {
    "function": partial(_stories, draw=_owned),
    "mathematics": partial(_stories, draw=_boxed),
    "search": _lookups,
    "mcp": partial(_stories, draw=_owned),
}
