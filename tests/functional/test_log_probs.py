import math

import pytest
import torch

from appo.functional import predicting_positions, scatter_scored, token_log_probs


def test_log_probs_and_entropies_by_hand():
    # Odds 1 : 1 : 2 make probabilities 1/4, 1/4, 1/2 and an entropy of (ln 4) / 2 + (ln 2) / 2 = 1.5 ln 2.
    logits = torch.tensor([[0.0, 0.0, math.log(2.0)]])
    log_probs, entropies = token_log_probs(logits, torch.tensor([2]))
    torch.testing.assert_close(log_probs, torch.tensor([-math.log(2.0)]))
    torch.testing.assert_close(entropies, torch.tensor([1.5 * math.log(2.0)]))


def test_temperature_divides_the_logits():
    logits, token_ids = torch.randn(4, 7), torch.randint(0, 7, (4,))
    hot = token_log_probs(logits, token_ids, temperature=2.0)
    divided = token_log_probs(logits / 2.0, token_ids)
    for ours, expected in zip(hot, divided, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_flow_through_both_results(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    token_ids = torch.randint(0, 5, (2, 3), generator=generator)
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, token_ids, temperature), (logits,))


@pytest.mark.parametrize("used", [0, 1])
def test_gradients_equal_those_of_the_definition(used):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 9, generator=generator, requires_grad=True)
    token_ids = torch.randint(0, 9, (6,), generator=generator)
    (ours,) = torch.autograd.grad(token_log_probs(logits, token_ids, 0.5)[used].sum(), logits)
    log_p = (logits / 0.5).log_softmax(-1)
    naive = (log_p.gather(-1, token_ids[:, None]), -(log_p.exp() * log_p).sum(-1))[used]
    (expected,) = torch.autograd.grad(naive.sum(), logits)
    torch.testing.assert_close(ours, expected)


def test_tokens_that_cannot_be_drawn_leave_values_and_gradients_finite():
    logits = torch.tensor([[0.0, 0.0, float("-inf")]], requires_grad=True)
    log_probs, entropies = token_log_probs(logits, torch.tensor([1]))
    (log_probs + entropies).sum().backward()
    torch.testing.assert_close(entropies, torch.tensor([math.log(2.0)]))
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0.5, 0.0]]))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    log_probs, entropies = token_log_probs(logits, torch.tensor([0]))
    (log_probs + entropies).sum().backward()
    torch.testing.assert_close(torch.stack([log_probs, entropies]), torch.zeros(2, 1))
    assert logits.grad.isfinite().all()


def test_half_precision_is_computed_in_single_precision():
    logits = torch.randn(3, 5, dtype=torch.bfloat16, requires_grad=True)
    log_probs, entropies = token_log_probs(logits, torch.tensor([0, 1, 2]))
    assert log_probs.dtype == entropies.dtype == torch.float32
    expected = logits.detach().float().log_softmax(-1)[torch.arange(3), torch.arange(3)]
    torch.testing.assert_close(log_probs.detach(), expected)
    log_probs.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_only_one_tensor_of_vocabulary_size_is_kept_for_the_backward_pass():
    saved = []
    logits = torch.randn(4, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        token_log_probs(logits, torch.zeros(4, dtype=torch.int64), 0.7)
    assert sum(numel >= logits.numel() for numel in saved) == 1


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        token_log_probs(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 0.0)


def test_token_ids_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"token_ids must have shape \[2\], got \[3\]"):
        token_log_probs(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))


def test_a_token_is_predicted_one_position_before_it():
    mask = torch.tensor([[False, True, False, True], [False, False, True, False]])
    assert predicting_positions(mask).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]


def test_scattered_values_stand_at_the_tokens_they_belong_to():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 6, generator=generator) < 0.5
    mask[:, 0] = False
    token_ids = torch.randint(0, 11, (3, 6), generator=generator)
    logits = torch.randn(3, 6, 11, generator=generator)  # those at position t predict token t + 1
    ours = scatter_scored(token_log_probs(logits[predicting_positions(mask)], token_ids[mask])[0], mask)
    for row in range(3):
        for t in range(6):
            expected = logits[row, t - 1].log_softmax(-1)[token_ids[row, t]] if mask[row, t] else torch.tensor(0.0)
            torch.testing.assert_close(ours[row, t], expected)


def test_gradients_flow_back_through_the_scatter():
    mask = torch.tensor([[False, True, False, True]])
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    (scatter_scored(values, mask) * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert values.grad.tolist() == [2.0, 4.0]
