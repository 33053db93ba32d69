"""What scorers may ask of the policy: log-probs of sequences that nobody has sampled, and the text of every token."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from appo.advantages import ProceduralAdvantage
from appo.core.batch import TrajectoryBatch
from appo.core.collate import collate
from appo.core.trajectory import Prompt
from appo.engines import SamplingParams
from appo.policy.log_probs import PolicyLogProbs
from appo.rewards import RewardRunner, as_reward
from appo.rollouts import AgentLoop, Branching, CandidateFilter, Collector, Limits, PhaseTimer, Policy
from appo.rollouts.tree import Tree
from appo.scorers import BatchContext, as_scorer
from appo.tools import TagSyntax, ToolRunner
from tests.rollouts.byte_tokenizer import EOS
from tests.rollouts.conftest import ScriptedEngine


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=300, **sizes)).double()


@pytest.fixture
def policy(model) -> Policy:
    def evaluate(batch: TrajectoryBatch) -> TrajectoryBatch:
        rows = (~batch.is_evaluated).nonzero()[:, 0]
        if not len(rows):
            return batch.evaluated(rows, torch.zeros(0, 0), torch.zeros(0, 0), policy_version=3)
        values = PolicyLogProbs(model)(batch.token_ids[rows], batch.response_mask[rows])
        return batch.evaluated(rows, *(value.detach() for value in values), policy_version=3)

    return Policy(evaluate)


def test_log_probs_of_any_sequences_are_those_of_the_model(policy, model):
    sequences = [torch.tensor([5, 6, 7, 8]), torch.tensor([9, 1]), torch.tensor([4, 4, 4])]
    masks = [torch.tensor(mask).bool() for mask in ([0, 1, 0, 1], [0, 1], [0, 0, 1])]
    values = policy.log_probs(sequences, masks)
    for sequence, mask, of_sequence in zip(sequences, masks, values, strict=True):
        log_softmax = model(sequence[None]).logits[0].log_softmax(-1)
        expected = [log_softmax[t - 1, sequence[t]].item() for t in range(1, len(sequence)) if mask[t]]
        assert of_sequence.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_process_without_sequences_takes_part():
    evaluated: list[TrajectoryBatch] = []

    def evaluate(batch: TrajectoryBatch) -> TrajectoryBatch:
        evaluated.append(batch)
        return batch

    assert Policy(evaluate).log_probs([], []) == []
    (batch,) = evaluated
    assert batch.is_evaluated.all()


@pytest.mark.parametrize("mask", [[1, 1], [0, 0], [0, 1, 1]])
def test_masks_that_no_model_can_score_are_refused(policy, mask):
    with pytest.raises(ValueError, match="masks must be bool, of the shape of their sequences, with a token, and"):
        policy.log_probs([torch.tensor([1, 2])], [torch.tensor(mask).bool()])


def test_a_scorer_sees_the_records_the_text_and_the_policy(tokenizer, policy, model):
    seen: list[BatchContext] = []

    def score(batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        """Digits before anything else."""
        seen.append(context)
        tokens = [context.tokens(row) for row in range(len(batch))]
        return torch.tensor([[float(token.isdigit()) for token in row] for row in tokens])

    roots, branches = _collected(
        tokenizer, policy, score, {"PQ": f"ab7c{EOS}", "R": f"d5{EOS}", "PQab7": EOS, "Rd5": EOS}, ["PQ", "R"]
    )
    # Each prompt has its own.
    first, second = seen
    assert first.tokens(0) == ["P", "Q", "a", "b", "7", "c", EOS]
    assert second.tokens(0) == ["R", "d", "5", EOS]
    assert [*first.trajectories, *second.trajectories] == roots
    assert [branch.origin.position for branch in branches] == [4, 2]
    (value,) = second.log_probs([roots[1].token_ids], [roots[1].response_mask])
    batch = policy.evaluate(collate(roots))
    assert value.tolist() == pytest.approx(batch.old_log_probs[1][batch.response_mask[1]].tolist(), abs=1e-6)


def _collected(tokenizer, policy: Policy, score, script: dict[str, str], texts: list[str]) -> tuple[Sequence, Sequence]:
    """Roots and branches of prompts, one of each a prompt."""
    runner = ToolRunner([])
    runner.start()
    engine = ScriptedEngine(tokenizer, script)
    collector = Collector(
        agent=AgentLoop(engine, tokenizer, runner, TagSyntax(), Limits(8, 0, 1)),
        policy=policy,
        scorer=as_scorer(score),
        advantage=ProceduralAdvantage(),
        reward=RewardRunner(as_reward(lambda trajectory: 0.0)),
        branching=Branching(2, 1, split="keep", parents="any"),
        candidates=CandidateFilter(tokenizer),
        sampling=SamplingParams(),
        seed=0,
        timer=PhaseTimer(),
    )
    prompts = [Prompt(text, text, tuple(tokenizer.encode(text, add_special_tokens=False)), ("",)) for text in texts]
    data = collector.collect([Tree(prompt) for prompt in prompts], 0)
    runner.stop()
    return data.roots, data.branches
