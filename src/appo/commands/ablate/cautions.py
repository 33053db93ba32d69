"""What stands between an ablation and its conclusions, in words."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from appo.commands.ablate.execution import Result
from appo.commands.ablate.matching import TOLERANCE
from appo.commands.ablate.runs import Run
from appo.commands.ablate.spec import AblationSpec

_LARGEST_SHARE = 0.05
"""Of the budget that an iteration may sample: a run ends with the iteration that reaches it."""


Cautions = dict[str, str]
"""Sentences by what they are about, which stays the same while their numbers change."""


def cautions_of_runs(runs: Sequence[Run]) -> Cautions:
    """What is known before anything has run.

    Args:
        runs: all trainings.
    """
    policies: dict[str, list[str]] = {}
    for run in runs:
        policies.setdefault(run.combination, []).append(run.policy)
    shared = {found[0]: None for found in policies.values() if len(found) > 1 and len(set(found)) == 1}
    return {
        f"policy {policy}": f"All seeds start from one policy, `{policy}`: intervals are about trainings of that "
        "policy, and leave out how far another one, from another fine-tuning, would move the result."
        for policy in shared
    }


def cautions_of_results(results: Sequence[Result], spec: AblationSpec) -> Cautions:
    """What finished trainings tell of how far they can be compared.

    Args:
        results: finished trainings.
        spec: of the ablation.
    """
    by_name = {c.name: [r for r in results if r.run.combination == c.name] for c in spec.combinations}
    largest = {name: max(r.costs.largest_iteration for r in found) for name, found in by_name.items() if found}
    cautions = {
        f"iteration {name}": f"An iteration of `{name}` generates up to {tokens:,.0f} tokens, "
        f"{tokens / spec.tokens:.1%} of the budget, and a run may end by as much above it: more `tokens`, or fewer "
        "prompts an iteration, make budgets equal."
        for name, tokens in largest.items()
        if tokens > _LARGEST_SHARE * spec.tokens
    }
    first = spec.combinations[0].name
    wanted = {result.run.seed: result.costs.tokens_per_step for result in by_name[first]}
    for name, found in by_name.items():
        shares = [r.costs.tokens_per_step / wanted[r.run.seed] for r in found if r.run.seed in wanted]
        if shares and abs(fmean(shares) - 1) > TOLERANCE:
            cautions[f"step {name}"] = (
                f"An optimizer step of `{name}` has generated {fmean(shares) - 1:+.1%} tokens against `{first}`: at "
                "the same tokens they differ in steps, which may decide by itself."
            )
    return cautions
