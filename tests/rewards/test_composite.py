"""Weighted sums of rewards whose parts stay visible."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards import AnswerReward, CompositeReward, ExactMatchReward, JudgeReward, OverlongPenalty, Reward
from tests.rewards.responses import boxed, trajectory


@dataclass(eq=False)
class Logged(Reward):
    """Writes down its starts and stops; may fail to start."""

    name: str
    log: list[str]
    starts: bool = True
    parts: dict[str, float] = field(default_factory=dict)

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        return RewardResult(1.0, self.parts)

    def start(self) -> None:
        self.log.append(f"{self.name} starts")
        if not self.starts:
            raise OSError("no")

    def stop(self) -> None:
        self.log.append(f"{self.name} stops")


def test_sum_by_hand():
    reward = CompositeReward(
        {"answer": AnswerReward(), "length": OverlongPenalty(max_tokens=10, buffer_tokens=4)}, {"length": 0.5}
    )
    text = r"<think>so</think><answer>\boxed{New York City}</answer>"
    # F1 = 0.8; 8 tokens are 2 of 4 into the buffer: -0.5, half of which counts: 0.8 - 0.25 = 0.55
    result = reward(trajectory(text, answers=["New York"], num_sampled=8))
    assert result.reward == pytest.approx(0.55)
    assert result.parts == pytest.approx(
        {
            "accuracy": 0.0,
            "answer": 0.8,
            "answer/accuracy": 0.0,
            "answer/f1": 0.8,
            "answer/format": 1.0,
            "answer/tool_bonus": 0.0,
            "length": -0.5,
            "length/overlong": 1.0,
        }
    )
    assert result.reason == (
        "answer: partly right: answered 'New York City', accepted 'New York'; "
        "length: 8 tokens are 2 into the buffer of 4"
    )


@pytest.mark.parametrize(("accuracy_of", "accuracy"), [(None, 0.25), ("a", 0.25), ("b", 0.75)])
def test_accuracy_is_that_of_the_named_part_or_of_the_first_that_has_one(accuracy_of, accuracy):
    rewards = {
        "none": Logged("none", []),
        "a": Logged("a", [], parts={"accuracy": 0.25}),
        "b": Logged("b", [], parts={"accuracy": 0.75}),
    }
    assert CompositeReward(rewards, accuracy_of=accuracy_of)(boxed("x")).parts["accuracy"] == accuracy


def test_without_a_part_that_has_an_accuracy_there_is_none():
    assert "accuracy" not in CompositeReward({"length": OverlongPenalty(max_tokens=600)})(boxed("x")).parts


def test_the_part_that_allows_the_fewest_at_once_decides():
    judges = {name: JudgeReward("m", max_concurrent=number) for name, number in (("one", 3), ("other", 5))}
    assert CompositeReward({**judges, "match": ExactMatchReward()}).max_parallel == 3
    assert CompositeReward({"match": ExactMatchReward()}).max_parallel is None


def test_parts_are_started_and_stopped():
    log: list[str] = []
    reward = CompositeReward({name: Logged(name, log) for name in "ab"})
    reward.start()
    reward.stop()
    assert log == ["a starts", "b starts", "b stops", "a stops"]


def test_parts_are_stopped_again_if_one_cannot_be_started():
    log: list[str] = []
    reward = CompositeReward({"a": Logged("a", log), "b": Logged("b", log, starts=False), "c": Logged("c", log)})
    with pytest.raises(OSError, match="no"):
        reward.start()
    assert log == ["a starts", "b starts", "b stops", "a stops"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": {}}, "parts must name at least one reward, got none"),
        ({"parts": {"a/b": AnswerReward()}}, "parts must have names without '/' and other than 'accuracy', got 'a/b'"),
        ({"parts": {"accuracy": AnswerReward()}}, "other than 'accuracy', got 'accuracy'"),
        ({"parts": {"a": AnswerReward()}, "weights": {"b": 1.0}}, "weights must belong to one of parts a, got 'b'"),
        ({"parts": {"a": AnswerReward()}, "weights": {"a": float("nan")}}, "weights must be finite, got nan for 'a'"),
        ({"parts": {"a": AnswerReward()}, "accuracy_of": "b"}, "accuracy_of must be one of parts a, got 'b'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CompositeReward(**options)


def test_the_answer_is_that_of_the_part_whose_accuracy_counts():
    reward = CompositeReward({"length": OverlongPenalty(10, 4), "exact": ExactMatchReward()})
    assert reward(boxed(r"\text{New York}")).answer == r"\text{New York}"
    assert CompositeReward({"length": OverlongPenalty(10, 4)})(boxed("Paris")).answer is None
