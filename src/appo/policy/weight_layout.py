"""The weights that a policy consists of: names, shapes, and which names are one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from appo.policy.architecture import empty_model


@dataclass(frozen=True, eq=False)
class WeightLayout:
    """What an update of a policy must bring.

    Attributes:
        model: name of the policy's class.
        shapes: of every parameter, by name; tied ones under each of their names.
        names: for every parameter, all names of its tensor.
    """

    model: str
    shapes: Mapping[str, torch.Size]
    names: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, model: PreTrainedModel) -> WeightLayout:
        """Describes a model as it is; the data of its parameters is not looked at."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        names: dict[int, list[str]] = {}
        for name, parameter in parameters.items():
            names.setdefault(id(parameter), []).append(name)
        return cls(
            type(model).__name__,
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
                raise ValueError(f"weights must be named like parameters of {self.model}, got {name!r}")
            if tensor.shape != self.shapes[name]:
                raise ValueError(f"{name} must have shape {list(self.shapes[name])}, got {list(tensor.shape)}")
            for alias in self.names[name]:
                if alias in missing:
                    del missing[alias]
                    yield alias, tensor
        if missing:
            raise ValueError(f"weights must name every parameter of {self.model}, missing {', '.join(missing)}")
