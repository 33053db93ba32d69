"""Finds the decisions in what a policy wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from appo.environments.gates.demonstrations import RESTART
from appo.environments.gates.problems import Route
from appo.environments.gates.world import SIGN, GateWorld
from appo.environments.words import sampled_runs

_LOOK_UP = re.compile(r"<think>(?P<thought>.*?)</think>\s*<search>\s*(?P<relation>\w+) of (?P<person>.+?)\s*</search>")


@dataclass(frozen=True)
class Turn:
    """A turn that was taken at a gate.

    Attributes:
        position: of the token that decides: the first of both ways in the thought, else in the call.
        gate: how many gates lie before it, in this walk.
        person: who stands there.
        is_right: whether the token names the right way.
        leads_right: whether the call does.
        strayed: whether an earlier turn of this walk led wrong.
        restarted: whether the walk has begun again.
    """

    position: int
    gate: int
    person: str
    is_right: bool
    leads_right: bool
    strayed: bool
    restarted: bool


def find_turns(question: str, tokens: Sequence[str], is_sampled: Sequence[bool], world: GateWorld) -> list[Turn]:
    """The turns of a trajectory, in their order; a call that names nobody of the world is none.

    Args:
        question: of the gates.
        tokens: the text of every position, prompt included.
        is_sampled: whether the policy sampled it.
        world: that the question is about.

    Raises:
        ValueError: if the question is none of the gates.
    """
    route = Route.parse(question)
    turns: list[Turn] = []
    gate, strayed, restarted = 0, False, False
    for run in sampled_runs(tokens, is_sampled):
        match = _LOOK_UP.search(run.text)
        if match is None or world.find(SIGN, match["person"]) is None:
            continue
        if match["relation"] == SIGN and gate and RESTART in match["thought"].split():
            gate, strayed, restarted = 0, False, True
        person = match["person"]
        ways = world.ways(person)
        if match["relation"] not in ways or gate == route.num_gates:
            continue
        position, word = run.position_of(ways, match.start())
        leads_right = match["relation"] == ways[0]
        turns.append(Turn(position, gate, person, word == ways[0], leads_right, strayed, restarted))
        gate, strayed = gate + 1, strayed or not leads_right
    return turns
