"""Estimators of the divergence from a reference policy."""

from __future__ import annotations

from torch import Tensor

from appo.functional.returns import MAX_LOG_RATIO

_MAX_K3 = 10.0


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, estimator: str = "k3") -> Tensor:
    """Divergence of the policy from the reference, estimated at the sampled token.

    With ``d = log_probs - ref_log_probs``: `k1` is ``d``, `abs` is ``|d|``, `k2` is ``d**2 / 2``, and `k3` is
    ``exp(-d) + d - 1``, at most 10. All but `k1` are positive; `k1` and, up to its bound, `k3` are unbiased.

    The gradient of an estimate is not an estimate of the gradient, since samples follow the policy: with tokens that
    the policy sampled, the gradient of `k1` has expectation 0, that of `abs` is the gradient of
    ``sum |policy - reference|``, that of `k2` of ``KL(policy || reference)`` and that of `k3`, within its bound, of
    ``KL(reference || policy)``.

    See "Approximating KL Divergence" (http://joschu.net/blog/kl-approx.html) and "On a few pitfalls in KL divergence
    gradient estimation for RL" (https://arxiv.org/abs/2506.09477).

    Args:
        log_probs: ``[B, T]`` under the policy, with gradient.
        ref_log_probs: ``[B, T]`` under the reference.
        estimator: `k1`, `abs`, `k2` or `k3`.

    Returns:
        ``[B, T]`` estimates.

    Raises:
        ValueError: if the estimator is unknown.
    """
    difference = log_probs - ref_log_probs
    if estimator == "k1":
        return difference
    if estimator == "abs":
        return difference.abs()
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        # Bounded before exp as well: an infinite value would turn the zero gradient of the outer bound into NaN.
        bounded = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return ((-bounded).exp() + bounded - 1.0).clamp(max=_MAX_K3)
    raise ValueError(f"estimator must be k1, abs, k2 or k3, got {estimator!r}")
