"""Hand-made questions of a pilot study."""

from __future__ import annotations

from collections.abc import Sequence

from appo.commands.pilot.records import Decision, Question, ScoreColumn


def decision(
    tokens: Sequence[int], rewards: Sequence[float], *, depth: float = 0.0, part: str = "thought", tells: bool = True
) -> Decision:
    """One whose answers are right where the reward is 1, and whose continuations belong to the halves by turns."""
    right = tuple(reward == 1.0 for reward in rewards) if tells else ()
    halves = tuple(number % 2 for number in range(len(tokens)))
    return Decision(0, 1, depth, part, tokens[0], "a", None, tuple(tokens), tuple(rewards), halves, right)


def question(name: str, decisions: Sequence[Decision], **scores: Sequence[float | None] | ScoreColumn) -> Question:
    """One with scores by the name of their scorer."""
    columns = {
        scorer: column if isinstance(column, ScoreColumn) else ScoreColumn(tuple(column))
        for scorer, column in scores.items()
    }
    return Question(name, "", (0.0, 1.0), tuple(decisions), columns, {}, 0, 0.0)
