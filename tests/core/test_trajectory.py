from dataclasses import replace

import pytest
import torch

from appo.core.trajectory import BranchPoint
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
