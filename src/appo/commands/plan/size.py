"""How large a policy is, counted on a model that has shapes and no data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from appo.policy.architecture import empty_model, head_size, num_kv_heads
from appo.policy.lora import Adapter, LoRA

_GATED_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class PolicySize:
    """Numbers of weights and widths of a causal language model whose layers are attention and a gated MLP.

    Attributes:
        num_weights: numbers in all parameters, tied ones counted once.
        layer_weights: of the largest decoder layer.
        largest_weight: numbers in the largest single parameter.
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        mlp_size: width inside the MLP.
        num_heads: attention heads.
        num_kv_heads: heads of keys and values.
        head_size: width of a head.
        vocab_size: logits of the LM head.
        head_is_tied: whether the LM head is the input embedding.
        adapter_weights: numbers in an adapter, which alone is trained; 0 without one.
        adapter_rank: of the adapter; 0 without one.
    """

    num_weights: int
    layer_weights: int
    largest_weight: int
    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    head_is_tied: bool
    adapter_weights: int = 0
    adapter_rank: int = 0

    @property
    def attention_size(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, which is also that of the value heads."""
        return self.num_kv_heads * self.head_size

    @property
    def lm_head_weights(self) -> int:
        """Weights of the LM head, and of the input embedding: ``vocab * hidden``."""
        return self.vocab_size * self.hidden_size

    @property
    def vocabulary_weights(self) -> int:
        """Weights of LM head and input embedding, which are one matrix where they are tied."""
        return self.lm_head_weights * (1 if self.head_is_tied else 2)

    @property
    def linear_layer_weights(self) -> int:
        """Weights of the matrices of a decoder layer: ``2 * hidden * (attention + kv) + 3 * hidden * mlp``."""
        return self.hidden_size * (2 * self.attention_size + 2 * self.kv_size + 3 * self.mlp_size)

    @classmethod
    def of(cls, model: PreTrainedModel, lora: LoRA | None = None) -> PolicySize:
        """Measures a model; the data of its parameters is not looked at.

        Args:
            model: it may be on the meta device.
            lora: adapter that it gets in place, if any.

        Raises:
            ValueError: if its layers are not attention with separate projections and one gated MLP.
        """
        decoder = model.get_decoder()
        layers = getattr(decoder, "layers", None)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if not isinstance(layers, nn.ModuleList) or head is None or not all(_is_gated_layer(layer) for layer in layers):
            raise ValueError(
                f"model.policy must have layers of {', '.join(_GATED_LAYER)} to be planned, got {type(model).__name__}"
            )
        text = model.config.get_text_config(decoder=True)
        size = cls(
            num_weights=_count(model),
            layer_weights=max(_count(layer) for layer in layers),
            largest_weight=max(parameter.numel() for parameter in model.parameters()),
            num_layers=len(layers),
            hidden_size=text.hidden_size,
            mlp_size=text.intermediate_size,
            num_heads=text.num_attention_heads,
            num_kv_heads=num_kv_heads(text),
            head_size=head_size(text),
            vocab_size=head.weight.shape[0],
            head_is_tied=head.weight is embedding.weight,
        )
        if lora is None:
            return size
        trained = Adapter(model, lora).trained().values()
        return replace(size, adapter_weights=sum(each.numel() for each in trained), adapter_rank=lora.rank)

    @classmethod
    def of_config(cls, config: PreTrainedConfig, lora: LoRA | None = None) -> PolicySize:
        """Measures a model that is not loaded, with or without an adapter."""
        return cls.of(empty_model(config), lora)


def _is_gated_layer(layer: nn.Module) -> bool:
    names = [name.rpartition(".")[2] for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
    return sorted(names) == sorted(_GATED_LAYER)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
