"""Log-probs and entropies of sampled tokens under a causal language model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel

from appo.distributed.fsdp import is_sharded
from appo.distributed.gather import unsharded
from appo.distributed.tensor_parallel import TokenSplit
from appo.functional import predicting_positions, scatter_scored, token_log_probs
from appo.policy.lm_head import LMHead, find_lm_head
from appo.policy.packing import SequenceForward

log = logging.getLogger(__name__)

_FORWARD = "evaluate_tokens"
"""A method of a sharded policy that gathers weights as its `forward` does."""


class PolicyLogProbs:
    """Log-probs and entropies of sampled tokens under a causal language model.

    Only hidden states that predict a scored token go through the LM head, a chunk at a time: prompts, tool output and
    padding cost no logits, and most logits are not kept for the backward pass. What rows begin with alike is computed
    once, also by the LM head, where the model allows it; the gradients of all rows flow through it. A model whose LM
    head is not one linear layer takes the plain path through all logits.

    Args:
        model: the policy or the reference; its attention may be exchanged for one that does not see other sequences.
        temperature: divides the logits, as it did in sampling.
        tensor: the tensor-parallel group, each process of which puts some of the tokens through the LM head.
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
    def _head(self) -> LMHead | None:
        # Found on first use: an attention that only runs on a GPU cannot be probed before the model is there.
        head = find_lm_head(self.model)
        if head is None:
            log.warning(
                "the LM head of %s is not one linear layer; log-probs use all logits", type(self.model).__name__
            )
        return head

    @cached_property
    def _sequences(self) -> SequenceForward:
        with unsharded(self.model):
            return SequenceForward(self.model, self.model if self._head is None else self.model.get_decoder())

    @property
    def shares(self) -> bool:
        """Whether tokens that rows begin with alike are computed once; processes of a sharded model ask together."""
        return self._sequences.packs and self._sequences.shares

    def __call__(self, token_ids: Tensor, mask: Tensor, with_entropies: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluates the tokens that `mask` selects.

        Args:
            token_ids: ``[B, T]`` int64, right-padded.
            mask: ``[B, T]`` bool, tokens to score; position 0 has no prediction and must be False.
            with_entropies: whether anybody reads them; else they are 0 where that saves work.

        Returns:
            ``[B, T]`` log-probs and ``[B, T]`` entropies in nats, float32 at least, both with gradient; 0 elsewhere.
        """
        if not is_sharded(self.model):
            return self._evaluate(token_ids, mask, with_entropies)
        _ = self._sequences  # made before the weights are unsharded for it
        log_probs, entropies = getattr(self.model, _FORWARD)(token_ids, mask, with_entropies)
        return log_probs, entropies

    def _evaluate(self, token_ids: Tensor, mask: Tensor, with_entropies: bool) -> tuple[Tensor, Tensor]:
        is_predicting = predicting_positions(mask)
        tree = self._sequences.tree(token_ids, is_predicting)
        if tree is None:
            values = self._score(self._sequences(token_ids, is_predicting), token_ids[mask], with_entropies)
        else:
            # A token that rows share, with all that it follows, is scored once for all of them.
            places, scored, of_row = _distinct(tree.places[is_predicting.cpu()], token_ids[mask])
            outputs = self._sequences.over_tree(token_ids, tree)[places]
            values = [each[of_row] for each in self._score(outputs, scored, with_entropies)]
        log_probs, entropies = (scatter_scored(each, mask) for each in values)
        return log_probs, entropies

    def _score(self, outputs: Tensor, token_ids: Tensor, with_entropies: bool) -> Sequence[Tensor]:
        """Log-probs and entropies of tokens, ``[N]`` each, from what the decoder, or the model, says before them."""
        if self._head is None:
            return token_log_probs(outputs, token_ids, self.temperature)
        if self.tensor is None:
            return self._head.log_probs(outputs, token_ids, self.temperature, with_entropies)
        tokens = TokenSplit(self.tensor, len(outputs))
        outputs, token_ids = tokens.shard(outputs), tokens.shard(token_ids)
        own = self._head.log_probs(outputs, token_ids, self.temperature, with_entropies)
        return [tokens.all_gather(values) for values in own]


def _distinct(places: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair of a place and a token once: places, tokens, and for each pair given which of those it is."""
    token_ids, device = token_ids.cpu(), token_ids.device
    width = int(token_ids.max()) + 1
    pairs, of_row = (places * width + token_ids).unique(return_inverse=True)
    return (pairs // width).to(device), (pairs % width).to(device), of_row.to(device)
