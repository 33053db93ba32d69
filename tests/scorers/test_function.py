"""A user's function as a scorer."""

import re

import pytest
import torch

from appo.scorers import BranchingScore, Entropy, FunctionScorer, as_scorer
from tests.scorers import functions
from tests.scorers.scored_batches import INF, context

MODULE = "tests.scorers.functions"


def test_a_plain_function_scores_sampled_tokens(batch):
    scores = as_scorer(functions.surprise)(batch, context())
    mask = batch.response_mask
    assert torch.equal(scores.values[mask], -batch.old_log_probs[mask])
    assert (scores.values[~mask] == -INF).all()
    assert scores.preferred is None


def test_a_function_has_options(batch):
    scorer = FunctionScorer(f"{MODULE}:surprise", {"scale": 2.0})
    torch.testing.assert_close(scorer(batch, context()).values, 2 * as_scorer(functions.surprise)(batch, None).values)


def test_a_function_may_say_which_tokens_it_prefers(batch):
    preferred = as_scorer(functions.preferring)(batch, context()).preferred
    assert torch.equal(preferred, batch.response_mask & (batch.entropies > 0.5))


def test_a_function_draws_with_the_generator_of_the_context(batch):
    scorer = as_scorer(lambda batch, context: torch.rand(batch.token_ids.shape, generator=context.generator))
    assert torch.equal(scorer(batch, context(3)).values, scorer(batch, context(3)).values)


def test_a_scorer_stays_what_it_is():
    scorer = Entropy()
    assert as_scorer(scorer) is scorer


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (
            BranchingScore,
            "neither a class nor a coroutine function, got <class 'appo.scorers.branching.BranchingScore'>",
        ),
        (functions.of_a_batch, "function must take a batch, a context and the options {}, got <function of_a_batch"),
        (3, "function must be callable"),
    ],
)
def test_what_is_no_scorer_is_refused_in_one_line(scorer, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        as_scorer(scorer)
    assert "\n" not in str(error.value)


def test_scores_of_another_shape_are_refused(batch):
    with pytest.raises(ValueError, match=r"of_a_row .* must return a tensor of shape \[6, 6\] or Scores, got \[6\]"):
        as_scorer(functions.of_a_row)(batch, context())


def test_a_score_above_all_others_is_refused(batch):
    def certain(batch, context):
        return torch.zeros(batch.token_ids.shape).masked_fill(batch.entropies == batch.entropies.max(), INF)

    row, position = divmod(int(batch.entropies.argmax()), batch.token_ids.shape[1])
    with pytest.raises(ValueError, match=f"scores must be finite or -inf, got inf in row {row} at position {position}"):
        as_scorer(certain)(batch, context())
