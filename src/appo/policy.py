"""The policy: a causal language model of transformers, its tokenizer, and the log-probs of what it sampled."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from appo.functional import predicting_positions, scatter_scored, token_log_probs

log = logging.getLogger(__name__)


def check_policy_folder(policy: str) -> None:
    """Refuses a path that is no model folder; what reads as a hub's ``owner/name`` passes.

    Raises:
        FileNotFoundError: if `policy` looks like a path and has no ``config.json``.
    """
    path = Path(policy).expanduser()
    looks_like_path = path.is_absolute() or policy.startswith((".", "~")) or policy.count("/") != 1 or path.is_dir()
    if looks_like_path and not (path / "config.json").is_file():
        raise FileNotFoundError(f"model.policy must be a Hugging Face model folder with a config.json, got {policy!r}")


def load_tokenizer(policy: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a policy.

    Args:
        policy: Hugging Face model folder or name.

    Raises:
        FileNotFoundError: if the folder is missing.
        ValueError: if the tokenizer has no chat template.
    """
    check_policy_folder(policy)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(policy)
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of model.policy must have a chat template, got none in {policy!r}")
    return tokenizer


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """The text of token ids."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)
    return text


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of a text that stands in the middle of a sequence."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def max_positions(policy: str) -> int | None:
    """Longest sequence that the policy was made for, in tokens; None if its configuration does not say."""
    check_policy_folder(policy)
    limit = getattr(AutoConfig.from_pretrained(policy), "max_position_embeddings", None)
    return int(limit) if limit is not None else None


def load_policy(policy: str, dtype: str = "float32", gradient_checkpointing: bool = False) -> PreTrainedModel:
    """A causal language model, ready to train.

    Args:
        policy: Hugging Face model folder or name.
        dtype: of the parameters: `float32`, `bfloat16`, or `auto` for that of the checkpoint.
        gradient_checkpointing: recomputes activations in the backward pass.

    Raises:
        FileNotFoundError: if the folder is missing.
    """
    check_policy_folder(policy)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(policy, dtype=dtype)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, one at a time, tied ones under each of their names."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter.detach()


class PolicyLogProbs:
    """Log-probs and entropies of sampled tokens under a causal language model.

    Only hidden states that predict a scored token go through the output head, so prompts, tool output and padding
    cost no vocabulary-sized row. A model whose logits are more than its head applied to its hidden states
    (soft-capped, scaled) is found by a probe and takes the plain path through all logits.

    Args:
        model: the policy or the reference.
        temperature: divides the logits, as it did in sampling.
    """

    def __init__(self, model: PreTrainedModel, temperature: float = 1.0) -> None:
        self.model = model
        self.temperature = temperature
        self._head_is_linear = _logits_are_head_of_hidden_states(model)
        if not self._head_is_linear:
            log.warning("%s computes logits by more than its head; log-probs use all logits", type(model).__name__)

    def __call__(self, token_ids: Tensor, lengths: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluates the tokens that `mask` selects.

        Args:
            token_ids: ``[B, T]`` int64, right-padded.
            lengths: ``[B]`` int64 tokens before the padding.
            mask: ``[B, T]`` bool, tokens to score; position 0 has no prediction and must be False.

        Returns:
            ``[B, T]`` log-probs and ``[B, T]`` entropies in nats, float32 at least, both with gradient; 0 elsewhere.
        """
        attention_mask = torch.arange(token_ids.shape[1], device=token_ids.device) < lengths.unsqueeze(-1)
        inputs = {"input_ids": token_ids, "attention_mask": attention_mask.long(), "use_cache": False}
        rows, positions = predicting_positions(mask)
        if self._head_is_linear:
            hidden = self.model.get_decoder()(**inputs).last_hidden_state
            logits = self.model.get_output_embeddings()(hidden[rows, positions])
        else:
            logits = self.model(**inputs).logits[rows, positions]
        log_probs, entropies = token_log_probs(logits, token_ids[mask], self.temperature)
        return scatter_scored(log_probs, mask), scatter_scored(entropies, mask)


@torch.no_grad()
def _logits_are_head_of_hidden_states(model: PreTrainedModel) -> bool:
    device = next(model.parameters()).device
    probe = torch.arange(4, device=device).unsqueeze(0)
    head = model.get_output_embeddings()
    if head is None:
        return False
    hidden = model.get_decoder()(input_ids=probe, use_cache=False).last_hidden_state
    return torch.allclose(head(hidden), model(input_ids=probe, use_cache=False).logits, atol=1e-5, rtol=1e-4)


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a Hugging Face folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
