"""A low-rank adapter: trained in place of the policy's weights, merged into them for engines and for the export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from appo.core.extras import require_extra
from appo.distributed.gather import full_tensor
from appo.policy.architecture import empty_model

if TYPE_CHECKING:
    from peft import PeftModel

_NAME = "default"
"""Of the adapter, as peft keeps it."""

_PARTS = (f".lora_A.{_NAME}", f".lora_B.{_NAME}")
"""What peft puts behind the name of a linear layer for the matrices beside it."""

_FAMILY = "model_type"
"""Attribute of a config by which peft knows the family of a model; it stands in the class."""

_OWN = ".base_layer"
"""What peft puts behind the name of a linear layer for the layer itself, once it has an adapter."""


@dataclass(frozen=True)
class LoRA:
    """Trains a product of two thin matrices beside each linear layer, and leaves the policy's own weights as they are.

    ``W' = W + alpha / rank * B A`` with ``A [rank, in]`` and ``B [out, rank]``; B starts at 0. See "LoRA: Low-Rank
    Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685) and, for weights of 4 bits, "QLoRA:
    Efficient Finetuning of Quantized LLMs" (https://arxiv.org/abs/2305.14314).
    """

    rank: int = 16
    """Inner dimension of the product."""
    alpha: int = 32
    """The product is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of a layer's inputs that the product does not see while it is trained, in [0, 1); importance ratios then
    begin near 1 instead of at 1."""
    target_modules: tuple[str, ...] = ()
    """Linear layers by the last parts of their names, such as `q_proj`. Empty: all but the LM head; tensors of
    experts are none."""
    quantize: Literal["nf4"] | None = None
    """`nf4` keeps the linear layers' own weights in 4 bits, which needs bitsandbytes and CUDA. `null`: as they are."""

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.lora.{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.lora.dropout must lie in [0, 1), got {self.dropout}")

    def check_installed(self) -> None:
        """Refuses what cannot be had here, before anything is loaded.

        Raises:
            ValueError: if a package or the GPU is missing.
        """
        require_extra("peft", "model.lora", "lora")
        if self.quantize is None:
            return
        require_extra("bitsandbytes", f"model.lora.quantize = {self.quantize}", "qlora")
        if not torch.cuda.is_available():
            raise ValueError(f"model.lora.quantize = {self.quantize} must have a GPU with CUDA, got none")

    def quantization(self, dtype: str) -> BitsAndBytesConfig | None:
        """Says how transformers is to load the linear layers.

        Args:
            dtype: of everything else; `float32` computes in it, all others in bfloat16.
        """
        if self.quantize is None:
            return None
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32 if dtype == "float32" else torch.bfloat16,
        )


def own_name(name: str) -> str | None:
    """Names a parameter of a policy with an adapter as in one without; None for those of the adapter."""
    path, dot, leaf = name.rpartition(".")
    return None if path.endswith(_PARTS) else f"{path.removesuffix(_OWN)}{dot}{leaf}"


class Adapter:
    """The adapter inside of a policy; no module of its own, so that it stands in a checkpoint once.

    Args:
        model: the policy; its linear layers get the adapter and everything else is frozen.
        options: of the adapter.

    Raises:
        ValueError: if a target is no linear layer, or shares its weight with another layer.
    """

    def __init__(self, model: PreTrainedModel, options: LoRA) -> None:
        from peft import LoraConfig, get_peft_model

        _check_targets(model, options.target_modules)
        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=list(options.target_modules) or _linear_layers(model),
            task_type="CAUSAL_LM",
        )
        self.model = model
        with _of_no_family(model.config):
            self.peft: PeftModel = get_peft_model(model, config, adapter_name=_NAME)

    def off(self) -> AbstractContextManager[None]:
        """Switches the adapter off within a context, in which the policy is what it was before the training."""
        without: AbstractContextManager[None] = self.peft.disable_adapter()
        return without

    def trained(self) -> dict[str, nn.Parameter]:
        """Lists the parameters of the adapter, as the policy names them."""
        return {name: parameter for name, parameter in self.model.named_parameters() if own_name(name) is None}

    @torch.no_grad()
    def named_weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yields every parameter of the policy with the adapter merged into it, by its name in a model without one.

        A layer is unsharded and merged when its turn comes, so there is never a second copy of more
        than one; all processes read on to the end. Tied parameters come under each of their names; quantized ones in
        the precision that the layer computes in.

        Args:
            dtype: of the weights, each rounded to it once, after it is merged. None: that of each.
        """
        from peft.tuners.lora import LoraLayer

        layers: dict[str, Any] = {
            name: module for name, module in self.model.named_modules() if isinstance(module, LoraLayer)
        }
        for name, parameter in self._own_parameters():
            weight = full_tensor(_full(parameter))
            kept, layer = dtype or weight.dtype, layers.get(name.removesuffix(".weight"))
            if layer is not None:
                weight = weight + full_tensor(layer.get_delta_weight(_NAME))
            yield name, weight.to(kept)

    def _own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields the policy's own parameters by their names in a model without an adapter, tied ones under each."""
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if (plain := own_name(name)) is not None:
                yield plain, parameter

    def merged(
        self, keep: bool = True, dtype: torch.dtype | None = None, in_place: bool = False
    ) -> PreTrainedModel | None:
        """Copies the policy to the CPU to be saved: merged, and not quantized. All processes call this.

        It cannot be evaluated, since what a model computes when it is made, such as frequencies of positions, is left
        out.

        Args:
            keep: False on processes that do not want it; they get None.
            dtype: as for `named_weights`.
            in_place: the copy takes the place of the policy's own weights, one by one, so that both need the memory of
                one; neither the policy nor the adapter is of any use afterwards. For a policy that is not sharded.
        """
        weights = {}
        own = dict(self._own_parameters()) if in_place else {}
        for name, tensor in self.named_weights(dtype):
            if name in own:
                _put(own[name], tensor.cpu())
                weights[name] = own[name].data
            elif keep:
                weights[name] = tensor.cpu()
        if not keep:
            return None
        config = deepcopy(self.model.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = empty_model(config)
        buffers = dict(self.model.named_buffers())
        weights |= {name: buffers[name].cpu() for name in model.state_dict() if name not in weights}
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
        model.generation_config = self.model.generation_config
        return model

    def save(self, folder: Path, keep: bool = True) -> None:
        """Writes the adapter alone, in peft's format. All processes call this.

        Args:
            folder: made if it is not there.
            keep: False on processes that write nothing.
        """
        state = {
            name: full_tensor(parameter.detach())
            for name, parameter in self.peft.named_parameters()
            if parameter.requires_grad
        }
        if keep:
            self.peft.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)


def _check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    head = model.get_output_embeddings()
    for target in targets:
        chosen = [layer for name, layer in layers.items() if f".{name}".endswith(f".{target}")]
        if not chosen:
            names = sorted({name.rpartition(".")[2] for name in layers})
            raise ValueError(
                f"model.lora.target_modules must name linear layers of the policy ({', '.join(names)}), got {target!r}"
            )
        if head in chosen and model.config.get_text_config().tie_word_embeddings:
            raise ValueError(
                f"model.lora.target_modules must not name a layer that shares its weight with the embeddings, "
                f"got {target!r}"
            )


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """All linear layers but the LM head, by the last part of their names where nothing else has it."""
    head = model.get_output_embeddings()
    linear: dict[str, list[str]] = {}
    others: set[str] = set()
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            linear.setdefault(last, []).append(name)
        else:
            others.add(last)
    return [target for last, names in linear.items() for target in (names if last in others else [last])]


@contextmanager
def _of_no_family(config: PreTrainedConfig) -> Iterator[None]:
    """Keeps peft from taking names of layers for those of experts.

    It reads `down_proj` of some mixtures as their checkpoints once meant it: as tensors of experts, which an adapter
    would wrap twice, and in place of the linear layers that have this name.
    """
    attributes = vars(config)
    own = {name: value for name, value in attributes.items() if name == _FAMILY}
    attributes[_FAMILY] = ""
    try:
        yield
    finally:
        del attributes[_FAMILY]
        attributes |= own


def _put(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Gives a parameter other numbers, in its memory if they fit: freed, it may be of no use to the allocator."""
    if parameter.data_ptr() == tensor.data_ptr():
        return
    if (parameter.dtype, parameter.shape, parameter.device) == (tensor.dtype, tensor.shape, tensor.device):
        parameter.data.copy_(tensor)
    else:
        parameter.data = tensor


def _full(parameter: nn.Parameter) -> Tensor:
    """Returns the numbers of a parameter, those of a quantized one as they enter a product."""
    if type(parameter).__name__ != "Params4bit":
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    quantized: Any = parameter
    full: Tensor = dequantize_4bit(quantized.data, quantized.quant_state)
    return full
