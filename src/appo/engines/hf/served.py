"""Which policies HFEngine serves: those whose past is the keys and values of positions, wherever a layer may look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from appo.engines.hf.kv_cache import KVCache, cache_shape
from appo.policy.architecture import has_state
from appo.policy.attention import without_cudnn
from appo.policy.precision import float32_products

_OTHERS = "rollout.engine=VLLMEngine and VLLMServerEngine serve what vLLM does"

_FULL, _SLIDING = "full_attention", "sliding_attention"
"""Names of transformers for kinds of layers."""

_TOLERANCE = 1e-2
"""Relative distance of two ways to compute logits that rounding of float32 may make."""


@dataclass(frozen=True)
class AttentionMasks:
    """The attention masks of a policy.

    Attributes:
        kinds: of its layers, as transformers names them: full attention, a sliding window, or both.
        window: positions that a sliding window sees, that of the token itself included.
    """

    kinds: frozenset[str]
    window: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> AttentionMasks:
        """Reads the kinds of layers.

        Raises:
            ValueError: if a layer keeps anything but keys and values of positions.
        """
        layers = DynamicCache(config=config).layers
        types = {*(getattr(config.get_text_config(decoder=True), "layer_types", None) or ())}
        others = {
            type(layer).__name__ for layer in layers if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)
        }
        others |= types - {_FULL, _SLIDING}
        if others:
            raise ValueError(
                f"HFEngine serves policies whose layers have full attention or sliding windows only, got "
                f"{config.model_type} with {', '.join(sorted(others))}; {_OTHERS}"
            )
        windows = {layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)}
        kinds = {_SLIDING if isinstance(layer, DynamicSlidingWindowLayer) else _FULL for layer in layers}
        return cls(frozenset(kinds), max(windows, default=0))

    def __call__(self, positions: Tensor, length: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Makes what is added to scores: 0 where a token looks, and minus infinity elsewhere.

        Args:
            positions: ``[B, T]`` int64, where tokens stand in their rows.
            length: of the keys, which stand at 0 and on.
            dtype: of the scores.

        Returns:
            ``[B, 1, T, length]``; by kind of layer if there are several.
        """
        distance = positions[..., None] - torch.arange(length, device=positions.device)
        sees = {_FULL: distance >= 0, _SLIDING: (distance >= 0) & (distance < self.window)}
        zeros = torch.zeros(distance.shape, dtype=dtype, device=positions.device)
        masks = {kind: zeros.masked_fill(~sees[kind], float("-inf"))[:, None] for kind in self.kinds}
        return masks if len(masks) > 1 else next(iter(masks.values()))


def check_served(config: PreTrainedConfig) -> None:
    """Refuses a policy that HFEngine cannot serve, before its weights are loaded.

    Raises:
        ValueError: if something else than attention carries what one token knows to the next.
    """
    if has_state(config):
        raise ValueError(
            f"HFEngine serves policies whose past is keys and values, got {config.model_type}, which carries a state "
            f"from token to token; {_OTHERS}"
        )
    AttentionMasks.of(config)


@torch.inference_mode()
@without_cudnn()
@float32_products("ieee")
def check_continuation(model: PreTrainedModel) -> None:
    """Makes sure that a model goes on from a cache of rows of unlike length as if it had read them anew.

    Positions that are no argument of the model, as those of ALiBi, show here.

    Raises:
        ValueError: if it computes something else, or fails.
    """
    token_ids = torch.tensor([[5, 6, 7, 8], [9, 10, 10, 10]], device=model.device) % model.config.vocab_size
    masks, cache = AttentionMasks.of(model.config), KVCache(cache_shape(model), model.dtype, model.device)
    cache.reserve(2, 4)
    reason, cause = "", None
    try:
        # The second row has two tokens: it stands still in the first pass, where its last one comes again.
        for positions in (torch.tensor([[0, 1, 2], [0, 0, 0]]), torch.tensor([[3], [1]])):
            at = positions.to(model.device)
            cache.focus(slice(0, 2), at, 4)
            logits = model(
                input_ids=token_ids.gather(1, at), attention_mask=masks(at, 4, model.dtype), position_ids=at,
                past_key_values=cache, use_cache=True,
            ).logits[:, -1]  # fmt: skip
        rows = (token_ids[:1], token_ids[1:, :2])
        plain = torch.cat([model(input_ids=row, use_cache=False).logits[:, -1] for row in rows])
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason, cause = f"fails with it: {str(error).partition(chr(10))[0]}", error
    else:
        distance = float((logits - plain).norm() / plain.norm())
        # In half precision an expert may be chosen otherwise; the probe of the weights compares log-probs then.
        if model.dtype == torch.float32 and not distance <= _TOLERANCE:
            reason = f"computes something else with it, by {distance:.2g}"
    if reason:
        raise ValueError(
            f"HFEngine serves policies that go on from keys and values of rows of unlike length, got "
            f"{model.config.model_type}, which {reason}; {_OTHERS}"
        ) from cause
