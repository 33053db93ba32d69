"""What optimizer steps make of single tokens, kept for the files of trajectories."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.distributed import comm

TokenValues = Mapping[int, Mapping[str, Tensor]]
"""``[T]`` float32 values by name, 0 on tokens that are not trained, by the number of the trajectory (`row`)."""


class TokenRecord:
    """Keeps the values of the last step that trained a trajectory.

    The sequences of a tensor-parallel group are computed by all of its processes, which do not know whose they are: of
    these nothing is kept.
    """

    def __init__(self) -> None:
        self._values: dict[int, dict[str, Tensor]] = {}

    def add(self, batch: TrajectoryBatch, values: Mapping[str, Tensor]) -> None:
        """Takes in what a step says of the tokens of some rows.

        Args:
            batch: the rows; those without a number are passed over.
            values: ``[B, T]`` by name.
        """
        if batch.row is None or comm.tensor_parallel_size() > 1:
            return
        on_cpu = {name: value.where(batch.trained, 0.0).float().cpu() for name, value in values.items()}
        for place, (row, length) in enumerate(zip(batch.row.tolist(), batch.lengths.tolist(), strict=True)):
            self._values[row] = {name: value[place, :length].clone() for name, value in on_cpu.items()}

    def pop(self) -> TokenValues:
        """What there is since the last call."""
        values, self._values = self._values, {}
        return values
