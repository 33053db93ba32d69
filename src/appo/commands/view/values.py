"""What can be looked at for every token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from appo.commands.view.steps import Column, Saved
from appo.monitoring.trajectory_files import significant

Scale = Literal["from_zero", "around_zero", "around_one"]
"""How a value is colored: by its size, or by the side of 0 or of 1 on which it lies."""


@dataclass(frozen=True)
class TokenValue:
    """A value of every sampled token.

    Attributes:
        name: in links and on the command line.
        label: what a person calls it.
        help: what it says, in a sentence.
        scale: how it is colored.
        of: computes it; None where the file does not say.
    """

    name: str
    label: str
    help: str
    scale: Scale
    of: Callable[[Saved], Column | None]


def _column(name: str) -> Callable[[Saved], Column | None]:
    return lambda trajectory: trajectory.columns.get(name)


def _surprisal(trajectory: Saved) -> Column | None:
    log_probs = trajectory.columns.get("behavior_log_probs")
    return None if log_probs is None else np.negative(log_probs).astype(np.float32)


def _log_ratio(trajectory: Saved) -> Column | None:
    """As the scorers take it: 0 on tokens that the policy has sampled which evaluated them."""
    columns = trajectory.columns
    if "old_log_probs" not in columns:
        return None
    ratio = columns["old_log_probs"] - columns.get("sampling_log_probs", columns["behavior_log_probs"])
    evaluated_by = trajectory.record.get("evaluated_by")
    return ratio if evaluated_by is None else np.where(columns["policy_versions"] == evaluated_by, 0.0, ratio)


def _entropy(trajectory: Saved) -> Column | None:
    """Of the policy that scored or, where none did, of the one that was updated, on tokens that it trained."""
    entropies, is_trained = trajectory.columns.get("entropies"), trajectory.columns.get("importance_weights")
    if entropies is None or is_trained is None or "old_log_probs" in trajectory.columns:
        return entropies
    return np.where(is_trained > 0.0, entropies, np.float32(np.nan))


def _of_update(name: str) -> Callable[[Saved], Column | None]:
    """A value that only trained tokens have: their importance weights are not 0."""

    def column(trajectory: Saved) -> Column | None:
        found = trajectory.columns.get(name)
        is_trained = trajectory.columns.get("importance_weights")
        return None if found is None or is_trained is None else np.where(is_trained > 0.0, found, np.float32(np.nan))

    return column


def _credit(trajectory: Saved) -> Column | None:
    """What a token's advantage has more than that of the ending, which no branch shares."""
    advantages = trajectory.columns.get("advantages")
    if advantages is None or not trajectory.is_sampled.any():
        return None
    ending = float(advantages[trajectory.is_sampled][-1])
    return advantages - np.float32(ending)


TOKEN_VALUES = (
    TokenValue("entropy", "entropy", "nats; how unsure the policy was of the next token", "from_zero", _entropy),
    TokenValue(
        "gain",
        "likelihood gain",
        "how much likelier the policy has become, since it sampled, to go on as the trajectory did",
        "around_one",
        _column("score_likelihood_gain"),
    ),
    TokenValue("score", "score", "of the scorer, such as the Branching Score", "around_zero", _column("scores")),
    TokenValue("advantage", "advantage", "what the token is trained with", "around_zero", _column("advantages")),
    TokenValue(
        "credit",
        "branch credit",
        "what the advantage has more than that of the trajectory's ending, which no branch shares",
        "around_zero",
        _credit,
    ),
    TokenValue(
        "log_ratio",
        "log-ratio",
        "nats; log-prob under the policy that scored minus that under the one that sampled",
        "around_zero",
        _log_ratio,
    ),
    TokenValue(
        "weight",
        "importance weight",
        "ratio of the policy that was updated, at that step, to the one that the loss compares it with",
        "around_one",
        _of_update("importance_weights"),
    ),
    TokenValue(
        "loss",
        "loss share",
        "part in the loss of the optimizer step, times its trained tokens: the mean of all is train/policy_loss",
        "around_zero",
        _of_update("loss_shares"),
    ),
    TokenValue(
        "surprisal", "surprisal", "nats; minus the log-prob under the policy that sampled", "from_zero", _surprisal
    ),
    TokenValue(
        "version",
        "policy version",
        "optimizer steps before the token was sampled",
        "from_zero",
        _column("policy_versions"),
    ),
)
"""In the order in which they are offered."""


def own_values(trajectory: Saved) -> dict[str, list[float | None]]:
    """The values of the tokens that a trajectory does not share with its parent, by name, to three digits.

    None stands for tokens that were not sampled, and for what is not finite. Values that the file does not have are
    left out.
    """
    found = {}
    for value in TOKEN_VALUES:
        column = value.of(trajectory)
        if column is not None:
            found[value.name] = rounded(column, trajectory)
    return found


def rounded(column: Column, trajectory: Saved, digits: int = 3) -> list[float | None]:
    """Own tokens of a column, to some significant digits."""
    own = slice(trajectory.first_own, len(trajectory))
    values = column[own].astype(np.float64)
    known = np.isfinite(values) & trajectory.is_sampled[own]
    values = np.where(known, values, 0.0)
    short: list[Any] = significant(values, digits).tolist()
    return [
        (int(value) if value == int(value) else value) if ok else None
        for value, ok in zip(short, known.tolist(), strict=True)
    ]
