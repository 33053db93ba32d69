"""Log-probs and entropies of sampled tokens under a causal language model."""

from __future__ import annotations

import logging
from functools import cached_property

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel

from appo.distributed.fsdp import is_sharded
from appo.distributed.gather import gathered
from appo.distributed.tensor_parallel import RowSplit
from appo.functional import predicting_positions, scatter_scored, token_log_probs
from appo.policy.output_head import LinearHead, find_linear_head
from appo.policy.packing import RowForward

log = logging.getLogger(__name__)


_FORWARD = "evaluate_rows"


"""A method of a sharded policy that gathers weights as its `forward` does."""


class PolicyLogProbs:
    """Log-probs and entropies of sampled tokens under a causal language model.

    Only hidden states that predict a scored token go through the output head, a chunk at a time: prompts, tool output
    and padding cost no row of vocabulary size, and most rows are not kept for the backward pass. A model whose head is
    not one linear layer takes the plain path through all logits.

    Args:
        model: the policy or the reference; its attention may be exchanged for one that does not see other rows.
        temperature: divides the logits, as it did in sampling.
        tensor: processes that compute decoder layers together; each puts some of the rows through the output head.
    """

    def __init__(self, model: PreTrainedModel, temperature: float = 1.0, tensor: DeviceMesh | None = None) -> None:
        self.model = model
        self.temperature = temperature
        self.tensor = tensor
        if is_sharded(model):
            # Layers are called one by one, and the head is read: they need the weights that `forward` would gather.
            setattr(model, _FORWARD, self._evaluate)
            register_fsdp_forward_method(model, _FORWARD)

    @cached_property
    def _head(self) -> LinearHead | None:
        # Found on first use: an attention that only runs on a GPU cannot be probed before the model is there.
        head = find_linear_head(self.model)
        if head is None:
            log.warning(
                "the output head of %s is not one linear layer; log-probs use all logits", type(self.model).__name__
            )
        return head

    @cached_property
    def _rows(self) -> RowForward:
        with gathered(self.model):
            return RowForward(self.model, self.model if self._head is None else self.model.get_decoder())

    def __call__(self, token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluates the tokens that `mask` selects.

        Args:
            token_ids: ``[B, T]`` int64, right-padded.
            mask: ``[B, T]`` bool, tokens to score; position 0 has no prediction and must be False.

        Returns:
            ``[B, T]`` log-probs and ``[B, T]`` entropies in nats, float32 at least, both with gradient; 0 elsewhere.
        """
        if not is_sharded(self.model):
            return self._evaluate(token_ids, mask)
        _ = self._rows  # made before the weights are gathered for it
        log_probs, entropies = getattr(self.model, _FORWARD)(token_ids, mask)
        return log_probs, entropies

    def _evaluate(self, token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._rows(token_ids, predicting_positions(mask))
        if self._head is None:
            log_probs, entropies = token_log_probs(outputs, token_ids[mask], self.temperature)
        elif self.tensor is None:
            log_probs, entropies = self._head.log_probs(outputs, token_ids[mask], self.temperature)
        else:
            rows = RowSplit(self.tensor, len(outputs))
            own = self._head.log_probs(rows.part(outputs), rows.part(token_ids[mask]), self.temperature)
            log_probs, entropies = (rows.all(values) for values in own)
        return scatter_scored(log_probs, mask), scatter_scored(entropies, mask)
