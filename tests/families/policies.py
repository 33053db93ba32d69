"""A tiny policy with random weights of every family of models that transformers has and vLLM serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.families.styles import (
    CHATML,
    COHERE,
    DEEPSEEK,
    GEMMA,
    GLM,
    GRANITE,
    LLAMA,
    MISTRAL,
    PHI,
    PLAIN,
    TULU,
    Style,
)

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
}
"""By the names that most configs have; heads of 32 are the smallest that vLLM attends with on a CPU."""

_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 2, "kv_lora_rank": 32, "q_lora_rank": None, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
    "v_head_dim": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
_WINDOW = 8
"""Tokens; less than any prompt."""
_EVERY_OTHER = ["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        style: of its conversations.
        options: of its config, beside the sizes that all have.
        left_out: sizes that its config has by other names.
        shows: what is particular of it.
    """

    style: Style
    options: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    shows: str = ""


FAMILIES = {
    "llama": Family(LLAMA),
    "qwen2": Family(CHATML, {"tie_word_embeddings": True}, ("head_dim",), "tied embeddings, biases"),
    "qwen3": Family(CHATML, shows="norms of queries and keys"),
    "qwen2_moe": Family(
        CHATML, _EXPERTS | {"shared_expert_intermediate_size": 32}, ("head_dim",), "experts, one shared"
    ),
    "qwen3_moe": Family(CHATML, _EXPERTS, shows="experts"),
    "mistral": Family(MISTRAL, {"sliding_window": _WINDOW}, shows="sliding windows"),
    "mixtral": Family(MISTRAL, {"num_local_experts": 4, "num_experts_per_tok": 2}, shows="experts"),
    "ministral": Family(
        MISTRAL, {"sliding_window": _WINDOW, "layer_types": _EVERY_OTHER},
        shows="sliding windows in every other layer",
    ),
    "gemma": Family(GEMMA, shows="tied embeddings"),
    "gemma2": Family(GEMMA, {"sliding_window": _WINDOW, "query_pre_attn_scalar": 32}, shows="windows, soft caps"),
    "gemma3_text": Family(
        GEMMA, {"sliding_window": _WINDOW, "query_pre_attn_scalar": 32, "initializer_range": 0.1,
                "layer_types": _EVERY_OTHER}, shows="windows, two kinds of positions",
    ),
    "phi": Family(PLAIN, {"num_key_value_heads": 2, "partial_rotary_factor": 0.5}, ("head_dim",), "partly rotated"),
    "phi3": Family(PHI, {"sliding_window": _WINDOW}, ("head_dim",), "fused projections, windows"),
    "olmo": Family(TULU, {}, ("head_dim",), "norms without weights"),
    "olmo2": Family(TULU, {}, ("head_dim",), "norms behind layers"),
    "olmo3": Family(
        TULU, {"sliding_window": _WINDOW, "layer_types": _EVERY_OTHER}, ("head_dim",),
        "windows in three of four layers",
    ),
    "olmoe": Family(TULU, {"num_experts": 4, "num_experts_per_tok": 2}, ("head_dim",), "experts"),
    "granite": Family(
        GRANITE, {"embedding_multiplier": 2.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
                  "attention_multiplier": 0.2}, ("head_dim",), "multipliers",
    ),
    "granitemoe": Family(
        GRANITE, {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 2.0}, ("head_dim",),
        "experts, multipliers",
    ),
    "smollm3": Family(CHATML, {"no_rope_layers": [1, 0]}, ("head_dim",), "layers without positions"),
    "glm": Family(GLM, {}, (), "half of the positions rotated"),
    "glm4": Family(GLM, shows="norms around layers"),
    "glm4_moe": Family(
        GLM, {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1},
        shows="experts, one shared",
    ),
    "cohere": Family(COHERE, {"logit_scale": 0.25}, ("head_dim",), "scaled logits, attention beside MLP"),
    "cohere2": Family(
        COHERE, {"logit_scale": 0.25, "sliding_window": _WINDOW, "layer_types": _EVERY_OTHER},
        shows="windows, layers without positions",
    ),
    "gpt_neox": Family(PLAIN, {}, ("num_key_value_heads", "head_dim"), "attention beside MLP"),
    "gpt2": Family(
        PLAIN, {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}, tuple(_SIZES), "dropout, Conv1D layers"
    ),
    "opt": Family(
        PLAIN, {"ffn_dim": 64, "word_embed_proj_dim": 64, "init_std": 0.25},
        ("intermediate_size", "num_key_value_heads", "head_dim", "initializer_range"), "dropout, learned positions",
    ),
    "falcon": Family(
        PLAIN, {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True, "alibi": False},
        ("intermediate_size", "num_key_value_heads", "head_dim"), "one head of keys, attention beside MLP",
    ),
    "starcoder2": Family(PLAIN, {"sliding_window": _WINDOW}, ("head_dim",), "windows, biases"),
    "stablelm": Family(TULU, {}, ("head_dim",), "a quarter of the positions rotated"),
    "nemotron": Family(CHATML, shows="squared ReLU"),
    "ernie4_5": Family(CHATML),
    "exaone4": Family(
        CHATML, {"sliding_window": _WINDOW, "layer_types": _EVERY_OTHER}, ("head_dim",),
        "windows",
    ),
    "seed_oss": Family(CHATML),
    "deepseek_v2": Family(DEEPSEEK, _LATENT, ("head_dim",), "latent attention, experts"),
    "deepseek_v3": Family(DEEPSEEK, _LATENT, ("head_dim",), "latent attention, experts"),
    "gpt_oss": Family(
        CHATML, {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": _WINDOW,
                 "layer_types": _EVERY_OTHER}, shows="attention sinks, experts",
    ),
    "gptj": Family(
        PLAIN, {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256, "rotary_dim": 16}, tuple(_SIZES),
        "dropout, attention beside MLP",
    ),
    "bloom": Family(
        PLAIN, {"hidden_size": 64, "n_layer": 2, "n_head": 2}, tuple(_SIZES), "positions in the attention (ALiBi)"
    ),
    "mamba": Family(
        PLAIN, {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2}, tuple(_SIZES), "a state, no attention"
    ),
    "mamba2": Family(
        PLAIN, {"hidden_size": 64, "state_size": 16, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 32,
                "n_groups": 1, "expand": 2, "chunk_size": 16}, tuple(_SIZES), "a state, no attention",
    ),
    "falcon_h1": Family(
        CHATML, {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1,
                 "mamba_chunk_size": 16}, shows="a state beside attention",
    ),
    "lfm2": Family(
        CHATML, {"layer_types": ["conv", "full_attention"]}, ("head_dim",), "convolutions and attention"
    ),
    "qwen3_next": Family(
        CHATML, _EXPERTS | {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
                            "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
                            "shared_expert_intermediate_size": 32}, shows="linear attention, experts",
    ),
}  # fmt: skip
"""By ``model_type`` of their config."""


def build(family: str, folder: Path) -> Path:
    """Writes a policy of a family with random weights, its tokenizer and chat template; returns the folder."""
    spec = FAMILIES[family]
    tokenizer = spec.style.tokenizer()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (spec.style.eos, spec.style.end.strip())]
    config = AutoConfig.for_model(
        family,
        **{name: value for name, value in _SIZES.items() if name not in spec.left_out} | spec.options,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    # Several end tokens, as chat models have them.
    model.generation_config.eos_token_id = sorted({end for end in ends if isinstance(end, int)})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
