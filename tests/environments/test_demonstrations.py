from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from appo.core.trajectory import NOT_SAMPLED, Prompt, ToolCall, Trajectory
from appo.environments.demonstrations import WorldDemonstrations
from appo.environments.problems import WorldProblems
from appo.environments.search import WorldSearch
from appo.environments.world import World
from appo.rewards import AnswerReward
from appo.tools import PythonTool, SearchTool, TagSyntax

DEMONSTRATIONS = WorldDemonstrations(WorldProblems(num_train=300, num_validation=40))


def as_trajectory(demonstration):
    """What a rollout with the same text would be, one token a segment."""
    problem, segments = demonstration.problem, demonstration.segments
    mask = torch.tensor([False, *(segment.is_generated for segment in segments)])
    calls = [
        ToolCall(step.tool, step.argument, segment.text, None, 0.0, position)
        for step, (position, segment) in zip(
            problem.steps, ((i, s) for i, s in enumerate(segments, 1) if not s.is_generated), strict=False
        )
    ]
    return Trajectory(
        prompt=Prompt(problem.id, problem.text, (0,), (problem.answer,)),
        token_ids=torch.arange(len(mask)),
        response_mask=mask,
        behavior_log_probs=torch.zeros(len(mask)),
        policy_versions=torch.full((len(mask),), NOT_SAMPLED),
        segments=segments,
        tool_calls=tuple(calls),
        finish_reason="eos",
    )


def test_equal_options_make_equal_demonstrations_and_another_seed_makes_others():
    assert WorldDemonstrations(WorldProblems(num_train=300, num_validation=40)).draw("train") == DEMONSTRATIONS.draw(
        "train"
    )
    assert replace(DEMONSTRATIONS, seed=1).draw("train") != DEMONSTRATIONS.draw("train")


def test_every_demonstration_has_the_form_that_the_reward_asks_for_and_solving_is_right():
    for demonstration in DEMONSTRATIONS.draw("train"):
        result = AnswerReward()(as_trajectory(demonstration))
        assert result.parts["format"] == 1.0
        if demonstration.strategy == "solve":
            assert result.parts["accuracy"] == 1.0
        if demonstration.strategy == "stop_early":
            assert result.parts["accuracy"] == 0.0


def test_strategies_have_the_shares_that_were_asked_for():
    drawn = WorldDemonstrations(WorldProblems(num_train=600), guess_share=0.2, stop_early_share=0.5).draw("train")
    counts = Counter(demonstration.strategy for demonstration in drawn)
    assert counts["guess"] == pytest.approx(0.2 * 600, rel=0.25)
    longer = [d for d in drawn if len(d.problem.steps) > 1 and d.strategy != "guess"]
    assert counts["stop_early"] == pytest.approx(0.5 * len(longer), rel=0.25)


def test_all_conversations_solve_when_no_poor_strategy_is_asked_for():
    demonstrations = replace(DEMONSTRATIONS, guess_share=0.0, stop_early_share=0.0)
    assert {demonstration.strategy for demonstration in demonstrations.draw("validation")} == {"solve"}


def test_calls_and_results_are_those_that_the_real_tools_and_the_syntax_make():
    syntax, python = TagSyntax(), PythonTool()
    tools = {"search": SearchTool(WorldSearch()), "python": python}
    python.start()
    try:
        for demonstration in DEMONSTRATIONS.draw("validation"):
            segments = demonstration.segments
            for written, result in zip(segments[0:-1:2], segments[1::2], strict=True):
                assert written.is_generated
                assert not result.is_generated
                (call,) = syntax.parse(written.text, tuple(tools), 9)
                assert call.end == len(written.text)
                assert syntax.format_result(tools[call.tool](call.argument)) == result.text
    finally:
        python.stop()


def test_stopping_early_answers_with_the_value_before_the_last_or_guesses_the_calculation():
    for demonstration in DEMONSTRATIONS.draw("train"):
        if demonstration.strategy == "stop_early":
            steps = demonstration.problem.steps
            assert len(demonstration.segments) == 2 * (len(steps) - 1) + 1
            last = demonstration.segments[-1].text
            if steps[-1].tool == "search":
                assert f"\\boxed{{ {steps[-2].value} }}" in last
            else:
                assert "Guess" in last


def test_a_search_tool_of_another_world_is_refused():
    stranger = SearchTool(WorldSearch(World(seed=9)))
    with pytest.raises(ValueError, match=r"search must answer '.*' with"):
        WorldDemonstrations(search=stranger).draw("validation")


@pytest.mark.parametrize("key", ["guess_share", "stop_early_share"])
def test_a_share_beyond_one_is_refused(key):
    with pytest.raises(ValueError, match=rf"{key} must lie in \[0, 1\], got 1.5"):
        WorldDemonstrations(**{key: 1.5})
