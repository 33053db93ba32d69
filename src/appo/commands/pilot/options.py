"""What a pilot study is asked for, beside the configuration of the policy and its task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from appo.policy.loading import check_policy_folder
from appo.prompts import Split
from appo.scorers import Oracle


@dataclass(frozen=True)
class StudyOptions:
    """How much is measured, and where it goes.

    Attributes:
        questions: measured, at most.
        roots: trajectories of each whose decisions are measured.
        positions: decisions of each question.
        continuations: that begin at a decision, in the mean.
        split: that the questions are of.
        influence: import path of a function that knows the influence of every token.
        later_policy: folder or name of what the policy has become, which scores as well.
        at_once: questions that are sampled together.
        out: folder.

    Raises:
        FileNotFoundError: if `later_policy` is a folder that holds no policy.
        ValueError: if a number is out of range, or there is no such function or policy.
    """

    questions: int
    roots: int
    positions: int
    continuations: int
    split: Split
    influence: str | None
    later_policy: str | None
    at_once: int
    out: Path

    def __post_init__(self) -> None:
        least = {"questions": 1, "roots": 1, "positions": 1, "continuations": 4, "at_once": 1}
        for name, number in least.items():
            if (value := getattr(self, name)) < number:
                raise ValueError(f"{name} must be at least {number}, got {value}")
        if self.later_policy is not None:
            check_policy_folder(self.later_policy, "later_policy")
        if self.influence is not None:
            try:
                Oracle(self.influence)
            except ValueError as error:
                raise ValueError(f"influence: {error}") from error


def check_vocabulary(later_policy: str | None, policy: str) -> None:
    """Refuses a later policy that cannot evaluate what a policy has sampled.

    Raises:
        ValueError: if it has another vocabulary.
    """
    if later_policy is None:
        return
    check_policy_folder(policy)
    later, own = (AutoConfig.from_pretrained(each).get_text_config().vocab_size for each in (later_policy, policy))
    if later != own:
        raise ValueError(f"later_policy must have the {own} tokens of model.policy, got {later}")
