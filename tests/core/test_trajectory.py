import json
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from appo.core.trajectory import BranchPoint, RewardResult
from tests.core.two_turns import branch_trajectory, parent_trajectory


def test_lengths_and_text_of_two_turns_with_a_tool_call():
    parent = parent_trajectory()
    assert (len(parent), parent.prompt_length, parent.response_length) == (7, 2, 5)
    assert parent.text == "<python>6*7</python> <result>42</result>42"
    assert parent.token_ids[parent.response_mask].tolist() == [10, 11, 12, 13]
    assert parent.token_ids[parent.tool_calls[0].position] == 20
    assert parent.origin is None


def test_a_branch_holds_its_whole_sequence_and_its_parent():
    parent = parent_trajectory()
    branch = branch_trajectory(parent)
    assert branch.origin.trajectory is parent
    shared = branch.origin.position + 1
    assert branch.token_ids[:shared].tolist() == parent.token_ids[:shared].tolist() == [5, 6, 10, 11, 20, 12]
    assert branch.token_ids[shared:].tolist() == [14, 15, 16]


def test_shared_tokens_belong_to_the_parent():
    parent = parent_trajectory()
    assert parent.num_own_tokens == 4
    assert branch_trajectory(parent).num_own_tokens == 3


def test_shared_calls_belong_to_the_parent():
    parent = parent_trajectory()
    assert parent.num_own_calls == 1
    # The result of the call begins at position 4.
    assert branch_trajectory(parent, position=4).num_own_calls == 0
    assert branch_trajectory(parent, position=3).num_own_calls == 1


@pytest.mark.parametrize("name", ["response_mask", "behavior_log_probs", "policy_versions"])
def test_a_tensor_of_another_length_is_refused(name):
    parent = parent_trajectory()
    with pytest.raises(ValueError, match=rf"{name} of trajectory q1 must have shape \[7\], got \[6\]"):
        replace(parent, **{name: getattr(parent, name)[:6]})


@pytest.mark.parametrize("position", [0, 7])
def test_a_branch_point_outside_the_response_is_refused(position):
    with pytest.raises(ValueError, match=f"last prompt token 1 and the last token 6 of trajectory q1, got {position}"):
        BranchPoint(parent_trajectory(), position, 0.0)


@pytest.mark.parametrize("position", [1, 6])
def test_a_branch_may_share_the_prompt_alone_or_everything(position):
    assert BranchPoint(parent_trajectory(), position, 0.0).position == position


def test_trajectories_are_compared_by_identity():
    parent = parent_trajectory()
    assert parent == parent
    assert parent != parent_trajectory()
    assert torch.equal(parent.token_ids, parent_trajectory().token_ids)


@pytest.mark.parametrize("number", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2), Decimal("0.5")])
def test_a_reward_keeps_any_number_as_a_float(number):
    result = RewardResult(number, {"accuracy": number, "calls": np.int64(2), "is_right": np.True_}, answer=np.int64(7))
    assert json.loads(json.dumps(vars(result))) == {
        "reward": 0.5, "parts": {"accuracy": 0.5, "calls": 2.0, "is_right": 1.0}, "reason": "", "answer": "7",
    }  # fmt: skip


@pytest.mark.parametrize("value", [None, "0.5", np.array([1.0, 2.0]), torch.zeros(2), 1j, [0.5]])
def test_what_is_no_number_is_no_reward(value):
    with pytest.raises(TypeError, match="the reward must be one number, got"):
        RewardResult(value)
    with pytest.raises(TypeError, match="the part 'accuracy' of a reward must be one number, got"):
        RewardResult(0.0, {"accuracy": value})
