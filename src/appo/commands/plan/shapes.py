"""Shapes of public models, to plan for them without a download."""

from __future__ import annotations

from typing import Any

_KEYS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip
_VALUES: dict[str, tuple[str | int, ...]] = {
    # https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/config.json
    "Qwen2.5-7B": ("qwen2", 3584, 18944, 28, 28, 4, 152064, 32768),
    # https://huggingface.co/Qwen/Qwen2.5-14B-Instruct/blob/main/config.json
    "Qwen2.5-14B": ("qwen2", 5120, 13824, 48, 40, 8, 152064, 32768),
    # https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct/blob/main/config.json
    "Llama-3.1-8B": ("llama", 4096, 14336, 32, 32, 8, 128256, 131072),
    # https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json
    "Qwen3-8B": ("qwen3", 4096, 12288, 36, 32, 8, 151936, 40960),
    # https://huggingface.co/Qwen/Qwen3-14B/blob/main/config.json
    "Qwen3-14B": ("qwen3", 5120, 17408, 40, 40, 8, 151936, 40960),
    # https://huggingface.co/meta-llama/Llama-3.1-70B-Instruct/blob/main/config.json
    "Llama-3.1-70B": ("llama", 8192, 28672, 80, 64, 8, 128256, 131072),
}

SHAPES: dict[str, dict[str, Any]] = {
    name: {**dict(zip(_KEYS, values, strict=True)), "tie_word_embeddings": False} for name, values in _VALUES.items()
}
"""What their ``config.json`` says of widths and depths, by name."""
