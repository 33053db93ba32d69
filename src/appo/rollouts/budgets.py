"""How many branches the prompts of all processes have, round by round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from appo.distributed import comm
from appo.distributed.comm import PendingSum
from appo.rollouts.branching import Branching


class Budgets:
    """Those of the prompts of this process, as far as they are certain.

    With ``spare_budget: others`` they depend on the prompts of other processes, which nobody waits for who has anything
    to sample. All processes make one for the same rounds of the same iteration, at the same time.

    Args:
        prompts: ids of those of this process.
        branching: how many branches there are.
        waits: for the other processes as soon as the prompts of this one are known, so that what is certain at a time
            does not depend on how fast they are.
    """

    def __init__(self, prompts: Sequence[str], branching: Branching, waits: bool) -> None:
        self._prompts = prompts
        self._branching = branching
        self._waits = waits
        self._shares_out = branching.spare_budget == "others" and branching.num_branches > 0
        everywhere = comm.all_gather(list(prompts)) if self._shares_out else []
        self._everywhere = [prompt for of_rank in everywhere for prompt in of_rank]
        self._start = sum(len(of_rank) for of_rank in everywhere[: comm.rank()])
        self._told: dict[int, PendingSum] = {}
        """Which of all prompts are open, by the rounds in which those of this process are known."""
        self._final: dict[int, dict[str, int]] = {}

    def of_round(self, number: int, is_open: Mapping[str, bool]) -> dict[str, int]:
        """Branches by the prompt's id: those that are certain, of prompts that are known.

        Args:
            number: of the round; one comes behind the other.
            is_open: whether a prompt has a possible parent, by its id, of those that are known.
        """
        if not self._shares_out:
            return branch_budgets(is_open, self._branching)
        if number not in self._final and len(is_open) == len(self._prompts):
            self._ask(number, is_open)
        if number in self._final:
            return self._final[number]
        return least_budgets(is_open, len(self._everywhere) - len(is_open), self._branching)

    def is_final(self, number: int) -> bool:
        """Whether the budgets of a round, as last asked for, are all that their prompts will have."""
        return not self._shares_out or number in self._final

    @property
    def is_waiting(self) -> bool:
        """Whether only other processes know what budgets become."""
        return len(self._told) > len(self._final)

    def wait(self) -> None:
        """Waits for the other processes."""
        for told in self._told.values():
            told.wait()

    def _ask(self, number: int, is_open: Mapping[str, bool]) -> None:
        if number not in self._told:
            flags = torch.zeros(len(self._everywhere))
            flags[self._start : self._start + len(is_open)] = torch.tensor([is_open[name] for name in self._prompts])
            self._told[number] = PendingSum(flags)
        told = self._told[number]
        if self._waits or told.is_there:
            everywhere = zip(self._everywhere, told.wait().bool().tolist(), strict=True)
            self._final[number] = branch_budgets(is_open, self._branching, everywhere)


def branch_budgets(
    is_open: Mapping[str, bool], branching: Branching, everywhere: Iterable[tuple[str, bool]] | None = None
) -> dict[str, int]:
    """The branches of each prompt in one round.

    Args:
        is_open: whether a prompt of this process has a possible parent, by its id.
        branching: how many there are.
        everywhere: the same of the prompts of all processes; None: there are no others.

    Returns:
        Branches by the prompt's id: a multiple of `siblings` each, and 0 for prompts that are not open. With
        ``spare_budget: others`` the open prompts of all processes share what is left over, in the order of their ids,
        so that it does not matter which process has which.
    """
    wanted = branching.num_branches // branching.rounds
    budgets = {prompt: wanted if opened else 0 for prompt, opened in is_open.items()}
    if branching.spare_budget == "others":
        of_all = list(is_open.items() if everywhere is None else everywhere)
        takers = sorted(prompt for prompt, opened in of_all if opened)
        num_points = (len(of_all) - len(takers)) * wanted // branching.siblings
        for place, prompt in enumerate(takers):
            if prompt in budgets:
                more = num_points // len(takers) + (place < num_points % len(takers))
                budgets[prompt] += branching.siblings * more
    return budgets


def least_budgets(is_open: Mapping[str, bool], num_unknown: int, branching: Branching) -> dict[str, int]:
    """What `branch_budgets` will give each prompt at least, while some are not known.

    Args:
        is_open: whether a prompt has a possible parent, by its id, of those that are known.
        num_unknown: other prompts, those of other processes among them.
        branching: how many branches there are.
    """
    wanted = branching.num_branches // branching.rounds
    more = 0
    if branching.spare_budget == "others":
        num_takers = sum(is_open.values())
        num_points = (len(is_open) - num_takers) * wanted // branching.siblings
        more = branching.siblings * (num_points // max(1, num_takers + num_unknown))
    return {prompt: wanted + more if opened else 0 for prompt, opened in is_open.items()}
