import math

import pytest
import torch

from appo.functional import kl_estimate

LOG_PROBS, REFERENCE = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.5, -1.0]),
        ("abs", [0.5, 1.0]),
        ("k2", [0.125, 0.5]),
        ("k3", [math.exp(-0.5) + 0.5 - 1, math.exp(1.0) - 1.0 - 1]),
    ],
)
def test_estimators_by_hand(estimator, expected):
    torch.testing.assert_close(kl_estimate(LOG_PROBS, REFERENCE, estimator), torch.tensor([expected]))


def test_k3_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 6, dtype=torch.float64, generator=generator).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((policy.exp() * kl_estimate(policy, reference, estimator)).sum(), exact)


def divergence_of_gradient(policy, reference):
    """The divergence whose gradient each estimator's has in expectation."""
    return {
        "k1": 0.0 * policy.sum(),
        "abs": (policy.exp() - reference.exp()).abs().sum(),
        "k2": (policy.exp() * (policy - reference)).sum(),
        "k3": (reference.exp() * (reference - policy)).sum(),
    }


@pytest.mark.parametrize("estimator", ["k1", "abs", "k2", "k3"])
def test_the_expected_gradient_is_that_of_a_divergence(estimator):
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    policy, reference = logits.log_softmax(-1), reference.log_softmax(-1)
    # What is sampled does not depend on the parameters that a loss is differentiated by.
    expectation = (policy.exp().detach() * kl_estimate(policy, reference, estimator)).sum()
    (expected,) = torch.autograd.grad(divergence_of_gradient(policy, reference)[estimator], logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(expectation, logits)[0], expected)


def test_k3_is_bounded_and_its_gradient_finite_far_from_the_reference():
    log_probs = torch.tensor([[-500.0, 0.0]], requires_grad=True)
    estimate = kl_estimate(log_probs, torch.tensor([[0.0, -500.0]]), "k3")
    estimate.sum().backward()
    assert estimate.tolist() == [[10.0, 10.0]]
    assert log_probs.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradients(estimator):
    log_probs = LOG_PROBS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, REFERENCE.double(), estimator), (log_probs,))


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="estimator must be k1, abs, k2 or k3, got 'k4'"):
        kl_estimate(LOG_PROBS, REFERENCE, "k4")
