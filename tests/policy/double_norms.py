"""Models in double precision throughout."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def keep_double(model: PreTrainedModel) -> None:
    """Norms of transformers compute in float32 whatever they are given."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            epsilon = getattr(module, "eps", None) or module.variance_epsilon
            shift = 1.0 if "Gemma" in type(module).__name__ else 0.0

            def forward(x, norm=module, epsilon=epsilon, shift=shift):
                return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * (norm.weight + shift)

            module.forward = forward
