"""Samples the roots of some questions, and draws tokens of them anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter

import torch

from appo.commands.pilot.continuations import Continuation, DrawnTokens
from appo.commands.pilot.options import StudyOptions
from appo.commands.pilot.positions import choose_decisions, depths, parts_of, share_continuations
from appo.commands.pilot.records import Decision, Question, ScoreColumn
from appo.commands.pilot.scoring import ScorerSet
from appo.core.batch import TrajectoryBatch
from appo.core.collate import collate
from appo.core.seeding import derive_seed
from appo.core.trajectory import BranchPoint, Prompt, Trajectory
from appo.engines import SamplingParams
from appo.rewards import RewardRunner
from appo.rollouts import Agent, Policy, RolloutRequest
from appo.rollouts.data import Evaluate
from appo.scorers import BatchContext, Scores

_RIGHT = 1.0 - 1e-6
"""Accuracy from which on an answer counts as right."""


@dataclass(frozen=True, eq=False)
class _Roots:
    """Of one question.

    Attributes:
        trajectories: its roots.
        batch: of them, rewarded and evaluated.
        chosen: rows and positions of the tokens that are drawn anew.
        known: influence of each of those, where an environment can tell.
        later: as `batch`, evaluated by what the policy has become; None without one.
    """

    trajectories: Sequence[Trajectory]
    batch: TrajectoryBatch
    chosen: Sequence[tuple[int, int]]
    known: Sequence[float | None]
    later: TrajectoryBatch | None

    @property
    def prompt(self) -> Prompt:
        """The question."""
        return self.trajectories[0].prompt


class Study:
    """Measures what the decisions of a policy are worth.

    Args:
        agent: samples trajectories with tools.
        reward: what they are worth.
        policy: evaluates the roots.
        later: evaluates them, already evaluated by `policy`, as what it has become; None without.
        scorers: score them.
        sampling: how tokens are drawn.
        may_call_tools: whether continuations call tools.
        options: how much is measured.
        seed: of everything random.
    """

    def __init__(
        self,
        agent: Agent,
        reward: RewardRunner,
        policy: Policy,
        later: Evaluate | None,
        scorers: ScorerSet,
        sampling: SamplingParams,
        may_call_tools: bool,
        options: StudyOptions,
        seed: int,
    ) -> None:
        self.agent = agent
        self.reward = reward
        self.policy = policy
        self.later = later
        self.scorers = scorers
        self.sampling = sampling
        self.may_call_tools = may_call_tools
        self.options = options
        self.seed = seed

    def __call__(self, prompts: Sequence[Prompt]) -> list[Question]:
        """Measures some questions at once."""
        started, seconds = perf_counter(), dict[str, float]()
        self.agent.pop_costs()
        all_roots = self._roots(prompts)
        seconds["roots"] = perf_counter() - started
        requests = [self._requests(roots) for roots in all_roots]
        sampled = self.agent.run([request for each in requests for request, _ in each], self.sampling)
        seconds["continuations"] = perf_counter() - started - sum(seconds.values())
        halves = [half for each in requests for _, half in each]
        continuations = map(Continuation, sampled, self.reward(sampled), halves)
        seconds["rewards"] = perf_counter() - started - sum(seconds.values())
        measured = [
            self._question(roots, list(islice(continuations, len(each))))
            for roots, each in zip(all_roots, requests, strict=True)
        ]
        seconds["scores"] = perf_counter() - started - sum(seconds.values())
        costs = self.agent.pop_costs()
        shares = {name: value / len(prompts) for name, value in seconds.items()}
        num_tokens = costs.num_tokens / len(prompts)
        return [replace(question, num_tokens=num_tokens, seconds=shares) for question in measured]

    def _roots(self, prompts: Sequence[Prompt]) -> list[_Roots]:
        requests = [
            RolloutRequest(prompt, derive_seed(self.seed, "pilot", "root", prompt.id, number))
            for prompt in prompts
            for number in range(self.options.roots)
        ]
        sampled = self.agent.run(requests, self.sampling)
        batch = self.policy.evaluate(collate(sampled, [result.reward for result in self.reward(sampled)]))
        later = None if self.later is None else self.later(batch)
        found = []
        for first in range(0, len(sampled), self.options.roots):
            rows = torch.arange(first, first + self.options.roots)
            of_question = None if later is None else later.select(rows)
            found.append(self._chosen(sampled[first : first + self.options.roots], batch.select(rows), of_question))
        return found

    def _chosen(
        self, trajectories: Sequence[Trajectory], batch: TrajectoryBatch, later: TrajectoryBatch | None
    ) -> _Roots:
        seed = derive_seed(self.seed, "pilot", "positions", trajectories[0].prompt.id)
        known = self.scorers.known_influence(batch, trajectories)
        generator = torch.Generator().manual_seed(seed)
        chosen = choose_decisions(batch.response_mask, known, self.options.positions, generator)
        values = [None if known is None else float(known[row, position]) for row, position in chosen]
        return _Roots(trajectories, batch, chosen, values, later)

    def _requests(self, roots: _Roots) -> list[tuple[RolloutRequest, int]]:
        """Those of every decision, each with its half; where roots begin alike, one of them stands for all."""
        places: dict[tuple[int, ...], tuple[int, int]] = {}
        for row, position in roots.chosen:
            places.setdefault(tuple(roots.trajectories[row].token_ids[:position].tolist()), (row, position))
        entropies = [float(roots.batch.entropies[place]) for place in places.values()]
        numbers = share_continuations(entropies, self.options.continuations)
        return [
            (self._request(roots, row, position, number), number % 2)
            for (row, position), num in zip(places.values(), numbers, strict=True)
            for number in range(num)
        ]

    def _request(self, roots: _Roots, row: int, position: int, number: int) -> RolloutRequest:
        """A branch shares the positions up to its point: the token is drawn anew behind the one before it."""
        seed = derive_seed(self.seed, "pilot", "continuation", roots.prompt.id, row, position, number)
        point = BranchPoint(roots.trajectories[row], position - 1, 0.0)
        return RolloutRequest(roots.prompt, seed, point, self.may_call_tools)

    def _question(self, roots: _Roots, continuations: Sequence[Continuation]) -> Question:
        prompt, batch = roots.prompt, roots.batch
        context = BatchContext(torch.Generator(), roots.trajectories, self.scorers.tokenizer)
        texts = [context.tokens(row) for row in range(len(batch))]
        parts = [parts_of(of_row, mask) for of_row, mask in zip(texts, batch.response_mask.tolist(), strict=True)]
        depth = depths(batch.response_mask)
        drawn = DrawnTokens(continuations)
        decisions = []
        for (row, position), known in zip(roots.chosen, roots.known, strict=True):
            tokens, draws = drawn.of(roots.trajectories[row], position)
            results = [each.result for each in draws]
            tells = all("accuracy" in result.parts for result in results)
            decisions.append(
                Decision(
                    root=row,
                    position=position,
                    depth=float(depth[row, position]),
                    part=parts[row][position],
                    token_id=int(batch.token_ids[row, position]),
                    text=texts[row][position] if prompt.is_public else "",
                    known=known,
                    tokens=tuple(tokens),
                    rewards=tuple(result.reward for result in results),
                    halves=tuple(each.half for each in draws),
                    right=tuple(result.parts["accuracy"] >= _RIGHT for result in results) if tells else (),
                )
            )
        scores, skipped = self.scorers(batch, roots.trajectories, roots.later)
        return Question(
            id=prompt.id,
            source=prompt.source,
            root_rewards=tuple(batch.rewards.tolist()),
            decisions=tuple(decisions),
            scores={name: _column(of_scorer, roots.chosen) for name, of_scorer in scores.items()},
            skipped=skipped,
            num_continuations=len(continuations),
            num_tokens=0.0,
        )


def _column(scores: Scores, chosen: Sequence[tuple[int, int]]) -> ScoreColumn:
    rows, positions = torch.tensor(chosen).T
    values = scores.values[rows, positions]
    finite = [value if ok else None for value, ok in zip(values.tolist(), values.isfinite().tolist(), strict=True)]
    preferred = () if scores.preferred is None else tuple(scores.preferred[rows, positions].tolist())
    return ScoreColumn(tuple(finite), preferred)
