"""A pilot study of a policy whose every chance is known, on gates: what is estimated can be held against what is exact.

``python -m tests.commands.pilot.exact_study --family gates_3 --questions 64`` prints how well they agree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from appo.commands.pilot.measures import Intervals, Measures, correlation, mean_over_questions
from appo.commands.pilot.options import StudyOptions
from appo.commands.pilot.sampling import Study
from appo.commands.pilot.scoring import ScorerSet
from appo.core.trajectory import Prompt
from appo.engines import SamplingParams
from appo.environments.gates import GateProblems, GateSearch, influence
from appo.rewards import AnswerReward, RewardRunner
from appo.rollouts import AgentLoop, Limits, Policy
from appo.scorers import Oracle
from appo.tools import SearchTool, TagSyntax, ToolRunner
from tests.commands.pilot.gate_walker import RIGHT_TURN, GateWalker
from tests.rollouts.byte_tokenizer import byte_tokenizer


def gate_problems(family: str, num_questions: int) -> GateProblems:
    """Questions of one number of gates."""
    return GateProblems(families={family: 1.0}, num_train=1, num_validation=1, num_test=num_questions)


def study_options(questions: int, roots: int = 4, positions: int = 48, continuations: int = 16) -> StudyOptions:
    """As the command line has them by default."""
    return StudyOptions(
        questions=questions,
        roots=roots,
        positions=positions,
        continuations=continuations,
        split="test",
        influence=None,
        later_policy=None,
        at_once=questions,
        out=Path("unused"),
    )


def exact_study(problems: GateProblems, options: StudyOptions) -> list[Measures]:
    """Measures the walker's decisions; what each knows of its influence is exact."""

    def exact(trajectory, tokens):
        return influence(trajectory, tokens, right_turn=RIGHT_TURN)

    policy, tokenizer = Policy(_evaluate), byte_tokenizer()
    runner = ToolRunner([SearchTool(GateSearch(problems.world))])
    runner.start()
    try:
        engine, limits = GateWalker(tokenizer, problems.world), Limits(2048, 10, max_result_tokens=256)
        study = Study(
            AgentLoop(engine, tokenizer, runner, TagSyntax(), limits),
            RewardRunner(AnswerReward(bonus_tools=())),
            policy,
            None,
            ScorerSet(Oracle(exact), None, policy, tokenizer, seed=0),
            SamplingParams(),
            True,
            options,
            seed=0,
        )
        prompts = [
            Prompt(problem.id, problem.text, tuple(tokenizer.encode(problem.text)), (problem.answer,))
            for problem in problems.draw("test")
        ]
        return Measures.of(study(prompts))
    finally:
        runner.stop()


def known_influence(measured: Sequence[Measures]) -> torch.Tensor:
    """``[P]`` of the decisions of all questions."""
    decisions = [decision for each in measured for decision in each.question.decisions]
    return torch.tensor([decision.known for decision in decisions], dtype=torch.float64)


def _evaluate(batch):
    """The policy that samples is the one that is trained; of its entropies it is read whether there is any."""
    rows = (~batch.is_evaluated).nonzero()[:, 0]
    log_probs = batch.behavior_log_probs[rows]
    return batch.evaluated(rows, log_probs, -log_probs, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="gates_3")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--continuations", type=int, default=16)
    args = parser.parse_args()
    options = study_options(args.questions, continuations=args.continuations)
    measured = exact_study(gate_problems(args.family, args.questions), options)
    known = known_influence(measured)
    turns = known > 0
    evident, influences = (
        torch.cat([getattr(each.whole, name) for each in measured]) for name in ("evident", "influence")
    )
    low, high = Intervals.of([each.question for each in measured]).influence
    holds = (low <= known + 1e-9) & (known <= high + 1e-9)
    in_question = mean_over_questions([correlation(each.whole.evident, known_influence([each])) for each in measured])
    means = [float(values[turns].nanmean()) for values in (influences, known)]
    sys.stdout.write(
        f"{len(known):,} decisions, {int(turns.sum())} of them turns\n"
        f"rank correlation: {correlation(evident, known):.3f}, in a question {in_question.mean:.3f}\n"
        f"mean influence of turns: {means[0]:.4f} measured, {means[1]:.4f} exact\n"
        f"intervals of turns that hold it: {float(holds[turns].double().mean()):.1%}\n"
    )


if __name__ == "__main__":
    main()
