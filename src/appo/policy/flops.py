"""What training a policy takes in floating-point operations, and what devices offer."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from appo.core.batch import TrajectoryBatch
from appo.core.prefix_tree import PrefixTree
from appo.policy.architecture import head_size

log = logging.getLogger(__name__)

_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_NUM_CHOSEN = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k")
"""How configurations of transformers call the routed experts of a layer, and those that a token goes through."""


@dataclass(frozen=True)
class TrainedWork:
    """What went through the policy, forth and back.

    Attributes:
        num_tokens: of the sequences that were trained, prompts and tool output included; those that they begin with
            alike are counted once if the policy computes them once.
        flops: as `PolicyFlops` counts them.
        num_shared: tokens that were not computed, since another sequence begins with them.
    """

    num_tokens: int = 0
    flops: float = 0.0
    num_shared: int = 0

    def __add__(self, other: TrainedWork) -> TrainedWork:
        return TrainedWork(
            self.num_tokens + other.num_tokens, self.flops + other.flops, self.num_shared + other.num_shared
        )


@dataclass(frozen=True)
class PolicyFlops:
    """Operations of a forward and a backward pass, without those that only save memory.

    ``sum over sequences of S * (6 * N + 12 * L * H * S) + 6 * N_head * scored tokens``

    where S is the length of the sequence, N the active weights of the decoder, L its layers and H the width of all
    attention heads together. Each weight takes part in one multiplication and one addition forth and in twice as many
    back, or in half of the latter where it is frozen: 4 instead of 6. Of routed experts those that a token goes through
    are active; an input embedding is looked up and takes nothing. Attention counts as if every token saw all of its
    sequence. Where sequences share tokens that are computed once, they count once, and see their sequence up to the end
    of what is shared. What is computed again (gradient checkpointing, chunks of the LM head, a prefix in several
    micro-batches) does not count.
    See "PaLM: Scaling Language Modeling with Pathways" (https://arxiv.org/abs/2204.02311), Appendix B.

    Attributes:
        token: operations a token in the matrices of the decoder.
        scored_token: operations a token in the LM head, which only trained tokens reach.
        pair: operations for each pair of tokens of a sequence.
    """

    token: float
    scored_token: float
    pair: float

    @classmethod
    def of(cls, policy: PreTrainedModel) -> PolicyFlops:
        """Counts those of a causal language model; its weights may be sharded or quantized."""
        config = policy.config.get_text_config(decoder=True)
        head = policy.get_output_embeddings()
        # A policy without attention has no such number, and one with layers of their own kinds has a list.
        heads = getattr(config, "num_attention_heads", None)
        width = 0
        if isinstance(heads, int):
            width = heads * head_size(config)
        return cls(
            token=sum(_flops(policy.get_decoder(), _active_share(config))),
            scored_token=0.0 if head is None else sum(_flops(head, 1.0)),
            pair=12.0 * config.num_hidden_layers * width,
        )

    def of_batch(self, batch: TrajectoryBatch, shares: bool = False) -> TrainedWork:
        """Counts what a pass over those sequences of a batch takes that have something to train.

        Args:
            batch: with the sequences.
            shares: whether tokens that they begin with alike are computed once. Counted are those of a prompt, whoever
                else begins with them: the sum does not depend on who trains which prompts.
        """
        mask = batch.trained
        is_trained = mask.any(-1)
        lengths = batch.lengths[is_trained]
        sums = torch.stack([lengths.sum(), lengths.square().sum(), mask.sum()])
        num_row_tokens, num_pairs, num_scored = num_tokens, *_ = sums.tolist()
        if shares:
            rows = [is_trained & (batch.group == group) for group in batch.group[is_trained].unique()]
            trees = [PrefixTree.of(batch.token_ids[row], batch.lengths[row]) for row in rows]
            num_tokens, num_pairs = sum(tree.num_tokens for tree in trees), sum(tree.num_pairs for tree in trees)
            scored = (tree.places[mask[row].cpu()].unique() for tree, row in zip(trees, rows, strict=True))
            num_scored = sum(map(len, scored))
        flops = self.token * num_tokens + self.pair * num_pairs + self.scored_token * num_scored
        return TrainedWork(num_tokens, flops, num_row_tokens - num_tokens)


def training_metrics(parts: Sequence[TrainedWork], update_s: float, device: torch.device) -> dict[str, float]:
    """Says how fast the policy was trained.

    Args:
        parts: what each process has trained.
        update_s: seconds of all updates.
        device: of this process; the others have their like.

    Returns:
        Tokens of all processes, those that others share, and the number of the former a second; TFLOP per second of one
        device and, where its peak is known, the share of it (`mfu`).
    """
    work = sum(parts, TrainedWork())
    flops = work.flops / len(parts) / update_s
    peak = peak_flops(device)
    metrics = {
        "tokens": float(work.num_tokens),
        "shared_tokens": float(work.num_shared),
        "tokens_per_s": work.num_tokens / update_s,
        "tflops_per_s": flops / 1e12,
    }
    return metrics if peak is None else {**metrics, "mfu": flops / peak}


def peak_flops(device: torch.device) -> float | None:
    """Looks up the most bfloat16 operations a second of a device, for dense matrices; None if unknown."""
    return peak_by_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_by_name(name: str) -> float | None:
    """Looks up the same for a GPU that calls itself `name`."""
    return next((peak for pattern, peak in _PEAKS.items() if re.fullmatch(f"(NVIDIA )?({pattern})", name)), None)


# Lightning has such a table, too: `get_available_flops` gives an H200 twice as much, which holds for sparse matrices,
# takes an L40S for an L4, and a GPU in eight parts for a whole one.
_PEAKS = {
    "A10": 125e12,
    r"A100-(SXM4|SXM|PCIE|PCIe)-\d+GB|A100 80GB PCIe": 312e12,
    "H100 80GB HBM3": 989.4e12,
    "H100 PCIe": 756e12,
    "H200": 989.4e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "GeForce RTX 4090": 165.2e12,
}
"""By what `torch.cuda.get_device_name` says, as a regular expression; from NVIDIA's data sheets, without sparsity."""


def _flops(module: nn.Module, active_share: float) -> Iterator[float]:
    """Counts the operations a token of each matrix."""
    for name, part in module.named_modules():
        share = active_share if "experts" in name.split(".") else 1.0
        if isinstance(part, nn.Linear):
            # Weights of 4 bits are packed: their own number says less than the layer.
            yield _each(part.weight) * part.in_features * part.out_features * share
        elif not isinstance(part, nn.Embedding):
            for parameter in part.parameters(recurse=False):
                if parameter.ndim > 1:
                    yield _each(parameter) * parameter.numel() * share


def _each(weight: Tensor) -> int:
    return 6 if weight.requires_grad else 4


def _active_share(config: object) -> float:
    """Computes the share of the weights of routed experts that a token goes through."""
    num_experts, num_chosen = (
        next((number for name in names if isinstance(number := getattr(config, name, None), int)), None)
        for names in (_NUM_EXPERTS, _NUM_CHOSEN)
    )
    if num_experts and not num_chosen:
        log.warning("the policy does not say how many experts a token goes through; train/mfu counts all of them")
    return num_chosen / num_experts if num_experts and num_chosen else 1.0
