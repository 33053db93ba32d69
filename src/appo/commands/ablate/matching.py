"""Numbers of prompts with which an optimizer step of every combination samples the same tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from appo.commands.ablate.execution import Result
from appo.commands.ablate.spec import Combination

log = logging.getLogger(__name__)

TOLERANCE = 0.05
"""Share of the tokens of a step by which a combination may differ from the first."""


def matched_combinations(combinations: Sequence[Combination], pilots: Mapping[str, Result]) -> list[Combination]:
    """Sets the prompts of every combination such that its optimizer steps sample as many tokens as the first's.

    Tokens a step are taken to be proportional to the prompts of a step. An iteration keeps its number of steps.

    Args:
        combinations: of an ablation, with the prompts of their configurations.
        pilots: a whole training of each, by name; one without is left out.

    Returns:
        The combinations; those within `TOLERANCE` as they are.

    Raises:
        ValueError: if one has so few prompts a step that no whole number of them comes within `TOLERANCE`.
    """
    wanted = pilots[combinations[0].name].costs.tokens_per_step
    return [_matched(c, pilots[c.name], wanted) for c in combinations if c.name in pilots]


def _matched(combination: Combination, pilot: Result, wanted: float) -> Combination:
    found = pilot.costs.tokens_per_step
    per_iteration, per_step = pilot.run.prompts
    if abs(found / wanted - 1) <= TOLERANCE:
        log.info("%s: %.0f tokens a step, with %d prompts", combination.name, found, per_step)
        return combination
    number = max(1, round(per_step * wanted / found))
    expected = found * number / per_step
    if abs(expected / wanted - 1) > TOLERANCE:
        raise ValueError(
            f"data.prompts_per_minibatch must be so large that whole prompts sample {wanted:.0f} tokens a step within "
            f"{TOLERANCE:.0%} in {combination.name}, got {per_step}: {number} would sample {expected:.0f}; "
            "--match none leaves prompts as they are"
        )
    log.info("%s: %.0f tokens a step, with %d prompts; %d are to sample %.0f, as %.0f are wanted",
             combination.name, found, per_step, number, expected, wanted)  # fmt: skip
    return combination.with_prompts(per_iteration // per_step * number, number)
