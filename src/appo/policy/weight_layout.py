"""The weights that a policy consists of: names, shapes, and which names are one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from appo.policy.architecture import empty_model


@dataclass(frozen=True, eq=False)
class WeightLayout:
    """What an update of a policy must bring.

    Attributes:
        model: that it describes; the data of its parameters is not looked at.
        shapes: of every parameter, by name; tied ones under each of their names.
        names: for every parameter, all names of its tensor.
    """

    model: PreTrainedModel
    shapes: Mapping[str, torch.Size]
    names: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, model: PreTrainedModel) -> WeightLayout:
        """Describes a model as it is."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        names: dict[int, list[str]] = {}
        for name, parameter in parameters.items():
            names.setdefault(id(parameter), []).append(name)
        return cls(
            model,
            {name: parameter.shape for name, parameter in parameters.items()},
            {name: tuple(names[id(parameter)]) for name, parameter in parameters.items()},
        )

    @classmethod
    def of_policy(cls, policy: str) -> WeightLayout:
        """Describes a policy that is not loaded.

        Args:
            policy: Hugging Face model folder or name.
        """
        return cls.of(empty_model(AutoConfig.from_pretrained(policy)))

    @property
    def num_weights(self) -> int:
        """Numbers in all parameters, tied ones counted once."""
        return sum(shape.numel() for name, shape in self.shapes.items() if self.names[name][0] == name)

    @property
    def has_ties(self) -> bool:
        """Whether some tensor has several names."""
        return any(len(names) > 1 for names in self.names.values())

    @property
    def has_buffers(self) -> bool:
        """Whether a checkpoint of it holds more than the parameters, such as the bias of a router, which stays."""
        return not self.shapes.keys() >= self.model.state_dict().keys()

    def checked(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Passes tensors on one by one, a tied one under each of its names, and makes sure that none is missing.

        Args:
            weights: parameter name and tensor, read once; of tied parameters one name is enough.

        Raises:
            ValueError: if a name or shape does not fit, or, at the end, if a parameter is missing.
        """
        missing = dict.fromkeys(self.shapes)
        for name, tensor in weights:
            if name not in self.shapes:
                raise ValueError(f"weights must be named like parameters of {type(self.model).__name__}, got {name!r}")
            if tensor.shape != self.shapes[name]:
                raise ValueError(f"{name} must have shape {list(self.shapes[name])}, got {list(tensor.shape)}")
            for alias in self.names[name]:
                if alias in missing:
                    del missing[alias]
                    yield alias, tensor
        if missing:
            model = type(self.model).__name__
            raise ValueError(f"weights must name every parameter of {model}, missing {', '.join(missing)}")

    def saved(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Checked tensors as a checkpoint of the policy holds them: the experts of a mixture one by one, for example.

        Args:
            weights: as in `checked`.

        Raises:
            ValueError: as in `checked`.
        """
        for name, tensor in self.checked(weights):
            yield from self._saved(name, tensor) if name in self._converted else [(name, tensor)]

    @cached_property
    def _converted(self) -> frozenset[str]:
        """Parameters that a checkpoint holds under other names."""
        empty = {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}
        if revert_weight_conversion(self.model, dict(empty)).keys() == empty.keys():
            return frozenset()
        return frozenset(name for name, tensor in empty.items() if [*dict(self._saved(name, tensor))] != [name])

    def _saved(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        saved: dict[str, Tensor] = revert_weight_conversion(self.model, {name: tensor})
        return saved.items()
