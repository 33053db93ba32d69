"""A policy that is known exactly: it walks through gates, turns right with one chance, and draws its fillers alike."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from appo.engines import Completion, Engine, Request
from appo.environments.gates import GateWorld
from appo.environments.gates.problems import Route
from appo.environments.gates.world import HOME, SIGN
from appo.environments.straying import FILLERS

RIGHT_TURN = 0.7

Choices = list[tuple[str, float]]
"""Texts that may come next, none the beginning of another, and their chances."""

_SEARCH = re.compile(r"<search> (\w+) of ([\w ]+?) </search>")


class GateWalker(Engine):
    """Writes a turn character by character, a token each, as the demonstrations of the gates do.

    Args:
        tokenizer: of one token a byte.
        world: that is walked.
    """

    def __init__(self, tokenizer, world: GateWorld) -> None:
        self.tokenizer = tokenizer
        self.world = world
        self.policy_version = 0
        self._queue: list[Request] = []

    def start(self, policy: str) -> None: ...

    def stop(self) -> None: ...

    def submit(self, request: Request) -> None:
        self._queue.append(request)

    def step(self) -> list[Completion]:
        queue, self._queue = self._queue, []
        return [self._complete(request) for request in queue]

    @property
    def num_in_flight(self) -> int:
        return len(self._queue)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None: ...

    @property
    def weight_dtype(self) -> torch.dtype:
        return torch.float64

    def _complete(self, request: Request) -> Completion:
        rng = random.Random(request.seed)
        context = self.tokenizer.decode(request.token_ids)
        question, _, walk = context.partition("one?")
        # What of the turn is there already decides what can still be drawn.
        written = walk.rpartition("</result>")[2]
        text, log_probs = "", list[float]()
        turn = self._turn(Route.parse(question), walk.removesuffix(written))
        choices = next(turn)
        while True:
            possible = [(choice, chance) for choice, chance in choices if choice.startswith(written)]
            if possible:
                drawn = rng.choices([c for c, _ in possible], [chance for _, chance in possible])[0]
                text += drawn[len(written) :]
                log_probs += character_log_probs(choices, drawn)[len(written) :]
                written = ""
            else:
                (drawn,) = (choice for choice, _ in choices if written.startswith(choice))
                written = written.removeprefix(drawn)
            try:
                choices = turn.send(drawn)
            except StopIteration:
                break
        token_ids = self.tokenizer.encode(text, add_special_tokens=False)
        ends = not text.endswith("</search>")
        if ends:
            token_ids, log_probs = [*token_ids, self.tokenizer.eos_token_id], [*log_probs, 0.0]
        assert len(token_ids) == len(log_probs) <= request.max_tokens
        reason, stop = ("eos", None) if ends else ("stop", "</search>")
        return Completion(request.id, tuple(token_ids), tuple(log_probs), reason, stop, 0, self.policy_version)

    def _turn(self, route: Route, walk: str) -> Iterator[Choices]:
        """What may be written in each part of the next turn, given what was drawn in those before."""
        person, gate, knows_sign, knows_home = route.start, 0, False, False
        for relation, of in _SEARCH.findall(walk):
            knows_sign, knows_home = relation == SIGN, relation == HOME
            if relation not in (SIGN, HOME):
                person, gate = self.world.move(of, relation), gate + 1
        if knows_home:
            words = [("done", 1.0)]
        elif knows_sign:
            right, wrong = self.world.ways(person)
            words = [(right, RIGHT_TURN), (wrong, 1.0 - RIGHT_TURN)]
        else:
            words = [(SIGN if gate < route.num_gates else HOME, 1.0)]
        fillers = [(f"{filler} ", 1.0 / len(FILLERS)) for filler in FILLERS]
        yield [("<think> ", 1.0)]
        word = yield [(f"{word} ", chance) for word, chance in words]
        yield fillers
        yield fillers
        if knows_home:
            answer = f"<answer> \\boxed{{ {self.world.value(HOME, person)} }} </answer>"
            yield [(f"</think>{answer}", 1.0)]
        else:
            yield [(f"</think><search> {word}of {person} </search>", 1.0)]


def character_log_probs(choices: Choices, drawn: str) -> list[float]:
    """Of each character of what was drawn, given those before."""
    log_probs, before = [], 1.0
    for end in range(1, len(drawn) + 1):
        mass = sum(chance for choice, chance in choices if choice[:end] == drawn[:end])
        log_probs.append(min(0.0, math.log(mass / before)))
        before = mass
    return log_probs
