"""What a model adds by chance while it is trained."""

from __future__ import annotations

import logging
import re

from torch import nn
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_NOISE = re.compile(r"drop|jitter", re.IGNORECASE)
"""In the names of attributes that say how much: dropout, layerdrop, noise of a router."""

_OF_ADAPTER = ".lora_"


def remove_noise(model: PreTrainedModel) -> dict[str, float]:
    """Turns off dropout and its like, but for that of an adapter; the config keeps what it says.

    Log-probs are measured without noise. With noise in the training step importance ratios would not begin at 1, and
    part of the tokens would be clipped before anything has changed.

    Returns:
        What was turned off: the largest value of each attribute.
    """
    found: dict[str, float] = {}
    for path, module in model.named_modules():
        if _OF_ADAPTER in f".{path}":
            continue
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        for name, value in list(vars(module).items()):
            is_amount = isinstance(value, float) and value > 0.0
            if is_amount and (_NOISE.search(name) or (is_dropout and name == "p")):
                setattr(module, name, 0.0)
                shown = path.rpartition(".")[2] if is_dropout else name
                found[shown] = max(found.get(shown, 0.0), value)
    if found:
        log.info("noise of the policy's config is off while it is trained: %s", found)
    return found
