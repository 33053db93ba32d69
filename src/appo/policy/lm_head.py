"""The LM head of a causal language model: what stands between its hidden states and its logits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from appo.functional import LogitTransform, linear_log_probs
from appo.policy.precision import float32_products


@dataclass(frozen=True, eq=False)
class LMHead:
    """An LM head that is one linear layer, and what the model makes of its outputs.

    Attributes:
        linear: the layer; its weight may be tied to the embedding.
        transform: from its outputs to logits.
    """

    linear: nn.Linear
    transform: LogitTransform

    def log_probs(
        self, hidden: Tensor, token_ids: Tensor, temperature: float, with_entropies: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Computes log-probs and entropies in nats, ``[N]`` each, from the ``[N, H]`` states that predict tokens."""
        transform = replace(self.transform, temperature=temperature)
        weight, bias = self.linear.weight, self.linear.bias
        return linear_log_probs(hidden, weight, bias, token_ids, transform, with_entropies=with_entropies)


@torch.no_grad()
def find_lm_head(model: PreTrainedModel) -> LMHead | None:
    """Finds the LM head of a model, if logits are one linear layer of hidden states, scaled and soft-capped.

    Layers that are quantized or wrapped by an adapter compute something else, and the model's own logits for a few
    tokens have the last word.
    """
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward:
        return None
    # A quantized or sharded weight is a tensor of a class of its own.
    if type(linear.weight.data) is not Tensor:
        return None
    head = LMHead(linear, _transform(model.config.get_text_config()))
    probe = torch.arange(4, device=linear.weight.device).unsqueeze(0)
    was_training = model.training
    model.eval()  # with dropout, no two passes are equal
    with torch.compiler.set_stance("force_eager"), float32_products("ieee"):
        hidden = model.get_decoder()(input_ids=probe, use_cache=False)[0]
        expected = model(input_ids=probe, use_cache=False).logits
        fits = hidden.shape[-1] == linear.in_features
        logits = head.transform.apply_(linear(hidden)) if fits else None
    model.train(was_training)
    return head if logits is not None and torch.allclose(logits, expected, atol=1e-5, rtol=1e-4) else None


def _transform(config: PretrainedConfig) -> LogitTransform:
    """Reads what follows the LM head, by the names that model families have for it."""
    values = config.to_dict()
    factors = [values.get(name) or 1.0 for name in ("logit_scale", "lm_head_multiplier", "logits_scaling")]
    soft_cap = values.get("final_logit_softcapping") or values.get("logits_soft_cap")
    return LogitTransform(scale=factors[0] * factors[1] / factors[2], soft_cap=soft_cap)
