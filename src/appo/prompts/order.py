"""The order in which training questions are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import ceil
from typing import Any

import torch

from appo.core.seeding import derive_seed


@dataclass(frozen=True)
class _Cursor:
    """How far the questions of one part are drawn.

    Attributes:
        passes: passes that are over.
        offset: questions drawn or left out in this pass.
        drawn: questions drawn with these weights.
    """

    passes: int = 0
    offset: int = 0
    drawn: int = 0


@dataclass(frozen=True)
class _Settings:
    """From which iteration on so many questions are drawn with such weights, and what was drawn before it."""

    first_iteration: int
    per_iteration: int
    weights: dict[str, float]
    cursors: dict[str, _Cursor]


class PromptStream:
    """An endless stream of seeded permutations of the training questions, cut into iterations.

    Each part is permuted anew in every pass over it. No question occurs twice in an iteration: a remainder that does
    not fill a part's share of one is left out of the pass. The parts take their shares in turn, so that they stay
    within a question of their weights however many are drawn. What an iteration draws follows from the seed and the
    iterations before it, not from when it is asked for.

    Args:
        ids: of the questions, in the order of their numbers.
        parts: the part that each question belongs to.
        weights: of the parts, relative to one another.
        per_iteration: questions of one iteration.
        seed: of all permutations.

    Raises:
        ValueError: if a part has no weight or no question, or fewer than its share of an iteration.
    """

    def __init__(
        self, ids: Sequence[str], parts: Sequence[str], weights: Mapping[str, float], per_iteration: int, seed: int
    ) -> None:
        total = sum(weights.values())
        self.weights = {part: weight / total for part, weight in weights.items()}
        self.per_iteration = per_iteration
        self.seed = seed
        self._members: dict[str, list[int]] = {part: [] for part in weights}
        for number, part in enumerate(parts):
            if part not in self._members:
                raise ValueError(f"weights must name the part {part!r} of a question, got {', '.join(weights)}")
            self._members[part].append(number)
        self._check_sizes()
        self._fingerprint = blake2b(repr(list(zip(parts, ids, strict=True))).encode(), digest_size=16).hexdigest()
        self._num_questions = len(ids)
        self._settings = [_Settings(0, per_iteration, self.weights, {part: _Cursor() for part in weights})]
        self._cursors = [self._settings[0].cursors]
        self._next_iteration = 0

    def draw(self, iteration: int) -> list[int]:
        """The numbers of the questions of an iteration; the same whenever it is asked for.

        Args:
            iteration: counted from 0.

        Raises:
            ValueError: if the iteration was drawn before a checkpoint with other settings than now.
        """
        settings = self._settings[-1]
        if iteration < settings.first_iteration:
            before = self._settings[-2]
            raise ValueError(
                f"data.prompts_per_iteration and the weights of its sources must stay {before.per_iteration} and "
                f"{before.weights} for iteration {iteration}, whose prompts the resumed run had drawn, got "
                f"{settings.per_iteration} and {settings.weights}"
            )
        self._advance_to(iteration - settings.first_iteration)
        cursors = self._cursors[iteration - settings.first_iteration]
        begin, end = self._take(cursors)
        drawn = {part: iter(self._numbers(part, begin[part], end[part])) for part in cursors}
        self._next_iteration = max(self._next_iteration, iteration + 1)
        return [next(drawn[part]) for part in self._turns(cursors)]

    def replacements(self, iteration: int) -> Iterator[int]:
        """The numbers of questions that may stand in for some of an iteration: those that it does not draw.

        They come in an order of their own, each from a part that is drawn by the weights, and end where that part has
        no more of them: however many are taken, the weights hold.

        Args:
            iteration: counted from 0.

        Raises:
            ValueError: as `draw`.
        """
        taken = set(self.draw(iteration))
        left = {part: iter(self._permuted(part, "spare", iteration)) for part in self._members}
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "spare parts", iteration))
        shares, parts = torch.tensor(list(self.weights.values())), list(self.weights)
        for number in torch.multinomial(shares, self._num_questions, replacement=True, generator=generator).tolist():
            question = next((one for one in left[parts[number]] if one not in taken), None)
            if question is None:
                return
            yield question

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on with the next iteration: plain numbers and texts."""
        return {
            "seed": self.seed,
            "num_questions": self._num_questions,
            "fingerprint": self._fingerprint,
            "next_iteration": self._next_iteration,
            "settings": [_to_state(settings) for settings in self._settings],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another stream stopped; another number of questions an iteration holds from there on.

        Raises:
            ValueError: if the seed or the questions are others, so that the order would be too.
        """
        if state["seed"] != self.seed:
            raise ValueError(f"data.seed must be that of the resumed run, {state['seed']}, got {self.seed}")
        if (state["num_questions"], state["fingerprint"]) != (self._num_questions, self._fingerprint):
            raise ValueError(
                f"data.source must have the {state['num_questions']} training questions of the resumed run, in their "
                f"order, got {self._num_questions}{' others' if state['num_questions'] == self._num_questions else ''}"
                "; to train on others, start from the resumed run's policy instead"
            )
        asked = self._settings[-1]
        self._settings = [_from_state(settings) for settings in state["settings"]]
        last = self._settings[-1]
        self._next_iteration = state["next_iteration"]
        self._cursors = [last.cursors]
        if (last.per_iteration, last.weights) == (asked.per_iteration, asked.weights):
            return
        self.per_iteration, self.weights = last.per_iteration, last.weights
        self._advance_to(self._next_iteration - last.first_iteration)
        self.per_iteration, self.weights = asked.per_iteration, asked.weights
        # What other weights have drawn is no debt to these.
        cursors = {part: replace(self._cursors[-1][part], drawn=0) for part in asked.weights}
        self._settings.append(_Settings(self._next_iteration, asked.per_iteration, asked.weights, cursors))
        self._cursors = [cursors]

    def _take(self, cursors: Mapping[str, _Cursor]) -> tuple[dict[str, _Cursor], dict[str, _Cursor]]:
        """Where each part begins in an iteration, and where it ends."""
        turns = self._turns(cursors)
        begin, end = {}, {}
        for part, cursor in cursors.items():
            count = turns.count(part)
            if cursor.offset + count > len(self._members[part]):
                cursor = replace(cursor, passes=cursor.passes + 1, offset=0)
            begin[part] = cursor
            end[part] = replace(cursor, offset=cursor.offset + count, drawn=cursor.drawn + count)
        return begin, end

    def _turns(self, cursors: Mapping[str, _Cursor]) -> list[str]:
        """The part that each question of an iteration is drawn from: the one that is furthest behind its share."""
        if len(cursors) == 1:
            return list(cursors) * self.per_iteration
        drawn = {part: cursor.drawn for part, cursor in cursors.items()}
        total = sum(drawn.values())
        turns = []
        for number in range(total + 1, total + self.per_iteration + 1):
            part = max(drawn, key=lambda part: self.weights[part] * number - drawn[part])
            drawn[part] += 1
            turns.append(part)
        return turns

    def _advance_to(self, number: int) -> None:
        while len(self._cursors) <= number:
            self._cursors.append(self._take(self._cursors[-1])[1])

    def _numbers(self, part: str, begin: _Cursor, end: _Cursor) -> list[int]:
        return self._permuted(part, "prompts", begin.passes)[begin.offset : end.offset]

    def _permuted(self, part: str, purpose: str, number: int) -> list[int]:
        """The questions of a part in the order that a purpose has for them, the `number`-th time."""
        members = self._members[part]
        named = (purpose, part, number) if part else (purpose, number)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, *named))
        return [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]

    def _check_sizes(self) -> None:
        for part, members in self._members.items():
            # A share of an iteration is rounded up at most, and a part may be one question behind.
            needed = min(self.per_iteration, ceil(self.weights[part] * self.per_iteration) + 1)
            if len(members) < needed:
                of_part = f" of {part.rstrip('/')}, from which up to {needed} are drawn at once" if part else ""
                raise ValueError(
                    "data.prompts_per_iteration must not exceed the number of training questions "
                    f"{len(members)}{of_part}, got {self.per_iteration}"
                )


def _to_state(settings: _Settings) -> dict[str, Any]:
    return {
        "first_iteration": settings.first_iteration,
        "per_iteration": settings.per_iteration,
        "weights": dict(settings.weights),
        "cursors": {part: [c.passes, c.offset, c.drawn] for part, c in settings.cursors.items()},
    }


def _from_state(state: Mapping[str, Any]) -> _Settings:
    cursors = {part: _Cursor(*numbers) for part, numbers in state["cursors"].items()}
    return _Settings(state["first_iteration"], state["per_iteration"], dict(state["weights"]), cursors)
