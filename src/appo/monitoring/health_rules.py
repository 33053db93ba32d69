"""Rules of a healthy run: what its metrics should not do for long, what it means if they do, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Row = Mapping[str, float]
"""The metrics of an iteration, by name."""

WINDOW = 3
"""Iterations whose mean a rule looks at; single ones jump, since each asks other questions."""


@dataclass(frozen=True)
class Rule:
    """A limit of a metric.

    Attributes:
        name: in a word or two.
        metric: as it is logged, or as a reader would compute it from what is.
        side: of the limit on which a run is not healthy.
        limit: of the mean over `WINDOW` iterations.
        means: what is the matter, in a sentence without capital and full stop.
        advice: what to try, in Markdown, with the keys to change.
        value: of an iteration; None where it does not say. By default what was logged as `metric`.
        is_relative: the value is divided by its mean over the first `WINDOW` iterations.
        is_told: whether a training says so while it runs; where another warning does, that one knows more.
    """

    name: str
    metric: str
    side: Literal["above", "below"]
    limit: float
    means: str
    advice: str
    value: Callable[[Row], float | None] | None = None
    is_relative: bool = False
    is_told: bool = True

    def value_of(self, row: Row) -> float | None:
        """The value that is compared with the limit; None where the iteration has none."""
        return row.get(self.metric) if self.value is None else self.value(row)

    def is_broken_by(self, value: float) -> bool:
        """Whether a value lies on the wrong side of the limit."""
        return value > self.limit if self.side == "above" else value < self.limit

    @property
    def condition(self) -> str:
        """When it speaks, in Markdown."""
        start = f" of its first {WINDOW} iterations" if self.is_relative else ""
        return f"{self.side} {self.limit:g}{start}"


def _made_share(row: Row) -> float | None:
    wanted = row.get("rollout/branches_wanted")
    return row.get("rollout/branches_made", 0.0) / wanted if wanted else None


def _contrast(row: Row) -> float | None:
    contrast = row.get("rollout/branch_contrast")
    return None if contrast is None else abs(contrast)


def _changed_share(row: Row) -> float | None:
    """Of scorers alone that compare policies: they log the gain."""
    return row.get("rollout/roots_changed_share") if "rollout/score_likelihood_gain_std" in row else None


RULES = (
    Rule(
        "zero-variance groups",
        "rollout/flat_groups_initial",
        "above",
        0.6,
        "all roots of most questions are worth the same, and a group of equal rewards has no gradient",
        "questions that are neither too hard nor too easy (`data.source`), more roots (`rollout.branching.num_roots`)",
    ),
    Rule(
        "zero-variance branches",
        "rollout/flat_groups_branch",
        "above",
        0.6,
        "all branches of most questions are worth the same",
        "more branches (`rollout.branching.num_trajectories`), a higher `rollout.branching.min_entropy`",
    ),
    Rule(
        "steps without signal",
        "train/steps_without_signal",
        "above",
        0.0,
        "all groups of a mini-batch had zero variance, so its step was left out",
        "more prompts in a mini-batch (`data.prompts_per_minibatch`)",
    ),
    Rule(
        "missing branches",
        "rollout/branches_made / rollout/branches_wanted",
        "below",
        0.5,
        "responses are too short for the branches, the policy is sure everywhere, or roots have one reward",
        "a lower `rollout.branching.min_entropy`, a smaller `rollout.branching.min_remaining`, "
        "`rollout.branching.parents=any`",
        value=_made_share,
    ),
    Rule(
        "late branches",
        "rollout/branch_depth_q10",
        "above",
        0.8,
        "the score follows the end of responses",
        "a larger `rollout.branching.min_remaining`",
    ),
    Rule(
        "echoes",
        "rollout/branch_echo",
        "above",
        0.4,
        "branches repeat their parent's ending token for token, and say nothing",
        "a higher `rollout.branching.min_entropy`; with `rollout.branching.split=keep`, `resample`",
    ),
    Rule(
        "branches in answers",
        "rollout/branch_in_answer",
        "above",
        0.2,
        "branches leave inside the answer, which is decided before it is written",
        "`answer` among the kinds of `rollout.branching.exclude`",
    ),
    Rule(
        "flat trees",
        "rollout/flat_trees",
        "above",
        0.6,
        "branches change nothing: all rewards of most trees are equal",
        "a higher `rollout.branching.min_entropy`; with `rollout.branching.parents=any`, `mixed`",
    ),
    Rule(
        "unfair siblings",
        "abs(rollout/branch_contrast)",
        "above",
        0.2,
        "points are chosen by what the parent did there, so its ending is no fair sibling of its branches",
        "`rollout.branching.siblings=2`, so that branches of a point are compared with each other",
        value=_contrast,
    ),
    Rule(
        "concentrated scores",
        "rollout/score_concentration",
        "above",
        0.95,
        "a few tokens hold all of the score, as may happen with `model.lora`, and the rest is noise",
        "`rollout.scorer=Entropy`, or a narrower `rollout.scorer.clip`",
    ),
    Rule(
        "unchanged policy",
        "rollout/roots_changed_share",
        "below",
        0.01,
        "the policy that scores is the one that sampled, so the score rests on entropy alone",
        "`rollout.branching.when=minibatch` or `rollout.sampling.lag=1`; with either, steps in between had no signal",
        value=_changed_share,
        is_told=False,
    ),
    Rule(
        "stale data",
        "rollout/log_ratio_std",
        "above",
        0.5,
        "the policy has moved far from the one that sampled what it learns from",
        "`rollout.sampling.lag=0`, a smaller learning rate (`model.optimizer`), fewer `data.update_epochs`",
    ),
    Rule(
        "saturated gains",
        "rollout/score_gain_saturated_mean",
        "above",
        0.5,
        "the clip cuts off most likelihood gains, so long stretches have the same one and the entropy decides",
        "a shorter `rollout.scorer.half_life`, a wider `rollout.scorer.clip`",
    ),
    Rule(
        "entropy collapse",
        "rollout/entropy",
        "below",
        0.2,
        "the policy has become sure of everything, and explores no more",
        "a smaller learning rate (`model.optimizer`), `model.loss.entropy_coef=0.001`",
        is_relative=True,
    ),
    Rule(
        "clipping above",
        "train/clip_fraction_high",
        "above",
        0.2,
        "steps go too far for tokens that become likelier",
        "a smaller learning rate (`model.optimizer`), fewer `data.update_epochs`",
    ),
    Rule(
        "clipping below",
        "train/clip_fraction_low",
        "above",
        0.2,
        "steps go too far for tokens that become less likely",
        "a smaller learning rate (`model.optimizer`), fewer `data.update_epochs`",
    ),
    Rule(
        "skipped steps",
        "train/skipped_steps",
        "above",
        0.0,
        "gradients were not finite",
        "a lower `model.max_grad_norm`, a smaller learning rate (`model.optimizer`)",
    ),
    Rule(
        "far from the reference",
        "train/kl",
        "above",
        1.0,
        "the policy has left the reference by more than a nat a token",
        "a higher `model.loss.kl_coef`",
    ),
    Rule(
        "lost format",
        "rollout/format",
        "below",
        0.8,
        "responses are not written as the reward reads them",
        "a longer `appo sft`, a smaller learning rate (`model.optimizer`)",
    ),
    Rule(
        "invented results",
        "rollout/invented_results",
        "above",
        0.1,
        "the policy writes results of tools itself",
        "tell it of its tools (`rollout.syntax.instructions`), and see whether its calls reach one",
    ),
    Rule(
        "failing tools",
        "rollout/tool_failures",
        "above",
        0.1,
        "a tool is broken, or the policy does not know how to call it",
        "read failing calls (`appo view`), and give more attempts or time (`rollout.limits.tool_attempts`)",
    ),
    Rule(
        "truncated responses",
        "rollout/finished",
        "below",
        0.9,
        "responses run into a limit, or the policy has not learned the token that ends a turn",
        "a larger `rollout.limits.max_response_tokens`, a longer `appo sft`",
    ),
    Rule(
        "overhead",
        "rollout/overhead",
        "above",
        0.1,
        "much of an iteration passes outside engine, log-probs and update: slow tools, or very small batches",
        "faster tools, more prompts in a mini-batch (`data.prompts_per_minibatch`)",
    ),
    Rule(
        "unequal processes",
        "rollout/rank_imbalance",
        "above",
        0.1,
        "processes wait for the one that samples most",
        "more prompts a process in a mini-batch (`data.prompts_per_minibatch`)",
    ),
)
"""In the order in which they are looked at."""


def rule_table() -> list[str]:
    """All rules as a table in Markdown, by line: that of ``docs/healthy_run.md``."""
    lines = ["| rule | speaks where | what it means | what to try |", "|---|---|---|---|"]
    return lines + [f"| {r.name} | `{r.metric}` {r.condition} | {r.means} | {r.advice} |" for r in RULES]
