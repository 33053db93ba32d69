"""The policy of a run that trained an adapter: merged, or the adapter alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from appo.commands.export.run_config import AdaptedRun
from appo.commands.export.weights import check_fit, empty_policy, misfits, read_weights
from appo.distributed.checkpoint import PolicyWeights
from appo.policy.loading import load_policy
from appo.policy.lora import Adapter, own_name


def holds_adapter(weights: PolicyWeights) -> bool:
    """Says whether some of a checkpoint's weights are those of an adapter."""
    return any(own_name(name) is None for name in weights.tensors)


@dataclass(frozen=True, eq=False)
class AdaptedPolicy:
    """A policy with an adapter, not loaded yet.

    Attributes:
        policy: Hugging Face model folder or name of the policy that the adapter was trained beside.
        run: what trained it.
        adapter: tensors of the adapter, as the policy names them.
        base: the policy's own weights, by their names without an adapter; none in a checkpoint that leaves them to the
            policy's folder.
    """

    policy: str
    run: AdaptedRun
    adapter: PolicyWeights
    base: PolicyWeights

    @classmethod
    def of(cls, weights: PolicyWeights, policy: str, run: AdaptedRun) -> AdaptedPolicy:
        """Describes the policy in a checkpoint with an adapter; nothing large is read for it.

        Args:
            weights: of the checkpoint.
            policy: Hugging Face model folder or name.
            run: what the config of the run says.

        Raises:
            ValueError: if peft is missing, or if the checkpoint does not fit the policy or the config.
        """
        replace(run.lora, quantize=None).check_installed()
        own = {name: own_name(name) for name in weights.tensors}
        adapter = weights.renamed({name: name for name, plain in own.items() if plain is None})
        base = weights.renamed({plain: name for name, plain in own.items() if plain is not None})
        model = empty_policy(policy, torch.float32)
        if base.tensors:
            check_fit(base.tensors, model)
        if problems := misfits(adapter.tensors, Adapter(model, run.lora).trained()):
            raise ValueError(
                f"ckpt must have the adapter that model.lora of {run.config} describes, {run.lora}, got one {problems}"
            )
        return cls(policy, run, adapter, base)

    def merged(self, dtype: str | None) -> dict[str, Tensor]:
        """Reads the policy's weights and merges the adapter into them; names are those without one.

        Args:
            dtype: of the weights, which are merged before they are rounded to it. None: that of the policy's own.

        Raises:
            ValueError: if what the adapter was trained beside cannot be had here.
        """
        adapter = self._attached(self._read_base() if self.base.tensors else self._load_base())
        merged = adapter.merged(dtype=None if dtype is None else getattr(torch, dtype), in_place=True)
        assert merged is not None
        return merged.state_dict()

    def save(self, folder: Path, dtype: str | None) -> None:
        """Writes the adapter alone, in peft's format; the policy's own weights are not read.

        Args:
            folder: to write.
            dtype: of the adapter. None: that of the checkpoint.
        """
        adapter = self._attached(empty_policy(self.policy, torch.float32))
        if dtype is not None:
            for parameter in adapter.trained().values():
                parameter.data = parameter.data.to(getattr(torch, dtype))
        adapter.save(folder)

    def _load_base(self) -> PreTrainedModel:
        self.run.lora.check_installed()
        quantization = self.run.lora.quantization(self.run.dtype)
        return load_policy(self.policy, self.run.dtype, quantization=quantization)

    def _read_base(self) -> PreTrainedModel:
        model = empty_policy(self.policy, torch.float32)
        model.load_state_dict(read_weights(self.base, model, None), assign=True)
        model.tie_weights()
        return model

    def _attached(self, model: PreTrainedModel) -> Adapter:
        adapter = Adapter(model, self.run.lora)
        device = torch.device("cpu") if model.device.type == "meta" else model.device
        tensors = {name: tensor.to(device) for name, tensor in self.adapter.read(self.adapter.tensors).items()}
        model.load_state_dict(tensors, strict=False, assign=True)
        return adapter
