from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from appo.core.batch import TrajectoryBatch
from appo.scorers import SCORERS, Scorer, Scores
from tests.properties import naive
from tests.properties.batches import few, hidden_variants, measured_batches, orders, reordered
from tests.properties.naive.common import rows_of
from tests.scorers.contexts import context_of

DETERMINISTIC = [name for name in SCORERS if name in naive.SCORERS and not naive.SCORERS[name].is_random]
SEED = 7


def scorers(name: str) -> st.SearchStrategy[Scorer]:
    return st.fixed_dictionaries(naive.SCORERS[name].options).map(
        lambda options: SCORERS[name](**naive.consistent(options))
    )


def score(scorer: Scorer, batch: TrajectoryBatch) -> Scores:
    return scorer(batch, context_of(batch, SEED))


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_and_every_option_has_a_definition(name):
    assert name in naive.SCORERS, f"{name} needs an entry in tests/properties/naive"
    assert set(naive.SCORERS[name].options) == {field.name for field in fields(SCORERS[name])}


@pytest.mark.parametrize("name", SCORERS)
@few
@given(st.data())
def test_equals_the_definition(name, data):
    scorer, batch = data.draw(scorers(name)), data.draw(measured_batches())
    scores = score(scorer, batch)
    expected = naive.SCORERS[name].compute(scorer, rows_of(batch), torch.Generator().manual_seed(SEED))
    values = torch.full(batch.token_ids.shape, float("-inf"), dtype=scores.values.dtype)
    for row, of_row in enumerate(expected):
        for t, value in of_row.values.items():
            values[row, t] = value
        for t, margin in (of_row.margins or {}).items():
            assert abs(margin) < 1e-9 or scores.preferred[row, t].item() == (margin > 0)
    torch.testing.assert_close(scores.values, values, atol=1e-7, rtol=1e-7)
    assert (scores.preferred is None) == all(of_row.margins is None for of_row in expected)
    if scores.preferred is not None:
        assert not scores.preferred[values == float("-inf")].any()


@pytest.mark.parametrize("name", SCORERS)
@few
@given(st.data())
def test_a_score_is_a_number_on_sampled_tokens_and_nothing_elsewhere(name, data):
    scorer, batch = data.draw(scorers(name)), data.draw(measured_batches())
    values = score(scorer, batch).values
    assert (values[~batch.response_mask] == float("-inf")).all()
    assert (values < float("inf")).all()


@pytest.mark.parametrize("name", DETERMINISTIC)
@few
@given(st.data())
def test_rows_permuted_are_scores_permuted(name, data):
    scorer, batch = data.draw(scorers(name)), data.draw(measured_batches())
    order = data.draw(orders(batch))
    scores, moved = score(scorer, batch), score(scorer, reordered(batch, order))
    torch.testing.assert_close(moved.values, scores.values[order])
    assert scores.preferred is None or torch.equal(moved.preferred, scores.preferred[order])


@pytest.mark.parametrize("name", SCORERS)
@few
@given(st.data())
def test_the_generator_is_the_only_source_of_chance(name, data):
    scorer, batch = data.draw(scorers(name)), data.draw(measured_batches())
    torch.manual_seed(1)
    scores = score(scorer, batch)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = score(scorer, batch)
    torch.testing.assert_close(again.values, scores.values, rtol=0.0, atol=0.0)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", SCORERS)
@few
@given(st.data())
def test_nothing_leaks_from_behind_the_mask(name, data):
    scorer, batch = data.draw(scorers(name)), data.draw(measured_batches())
    scores = score(scorer, batch)
    for dirty in hidden_variants(batch):
        same = score(scorer, dirty)
        torch.testing.assert_close(same.values, scores.values, rtol=0.0, atol=0.0)
        assert scores.preferred is None or torch.equal(same.preferred, scores.preferred)
        for key, factor in scores.factors.items():
            sampled = batch.response_mask
            torch.testing.assert_close(same.factors[key][sampled], factor[sampled], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", ["BranchingScore", "LikelihoodGain"])
@few
@given(st.data())
def test_a_short_half_life_leaves_the_token_alone_and_none_counts_all_that_follows(name, data):
    batch = data.draw(measured_batches())
    sampling = batch.behavior_log_probs if batch.sampling_log_probs is None else batch.sampling_log_probs
    mask = batch.response_mask
    log_ratio = (batch.old_log_probs - sampling).where(mask & (batch.policy_versions == 0), 0.0)
    for half_life, summed in ((1e-6, log_ratio), (None, log_ratio.flip(-1).cumsum(-1).flip(-1))):
        gain = score(SCORERS[name](half_life=half_life, clip=0.0), batch).factors["likelihood_gain"]
        torch.testing.assert_close(gain[mask], summed.exp()[mask])


@pytest.mark.parametrize("name", DETERMINISTIC)
@few
@given(st.data())
def test_padding_changes_nothing(name, data):
    scorer, batch = data.draw(scorers(name)), data.draw(measured_batches())
    wider = {
        field.name: torch.nn.functional.pad(value, (0, 3))
        for field in fields(batch)
        if (value := getattr(batch, field.name)) is not None and value.ndim == 2
    }
    scores = score(scorer, replace(batch, **wider))
    torch.testing.assert_close(scores.values[:, :-3], score(scorer, batch).values)
    assert (scores.values[:, -3:] == float("-inf")).all()
