"""What a model adds by chance while it is trained."""

from __future__ import annotations

import inspect
import logging
import re
from copy import copy

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

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
        for name, value in _read_from_config(module).items():
            # A copy: the model, its other layers and what is saved keep theirs.
            module.config = copy(module.config)
            setattr(module.config, name, 0.0)
            found[name] = max(found.get(name, 0.0), value)
    if found:
        log.info("noise of the policy's config is off while it is trained: %s", found)
    return found


def _read_from_config(module: nn.Module) -> dict[str, float]:
    """Noise whose amount a layer looks up in its config whenever it computes, as those of Falcon do."""
    config = getattr(module, "config", None)
    if not isinstance(config, PreTrainedConfig) or isinstance(module, PreTrainedModel):
        return {}
    amounts = {name: value for name, value in vars(config).items() if isinstance(value, float) and value > 0.0}
    noise = {name: value for name, value in amounts.items() if _NOISE.search(name)}
    looked_up = _looked_up(module) if noise else frozenset()
    return {name: value for name, value in noise.items() if name in looked_up}


def _looked_up(module: nn.Module) -> frozenset[str]:
    """What the computation of a layer reads from its config."""
    try:
        source = inspect.getsource(type(module).forward)
    except OSError:
        return frozenset()
    return frozenset(re.findall(r"self\.config\.(\w+)", source))
