"""Tiny policies and their tokenizer, made on the spot, and what a test of an engine does with them."""

import random
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from appo.engines import Completion, Engine, Request

ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}

TEXT = [
    "What is 37 + 48? <python>print(37 + 48)</python> gives 85.",
    "Who lives in Oslo? <search>people in Oslo</search> says Ana Ruiz.",
    "Zürich, café, naïve, 東京 and 🎉 need several bytes a character.",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE; `</python>` is one token, `</search>` takes several, `)</` is merged as real vocabularies do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    tokenizer.add_tokens([AddedToken("</python>", normalized=False), AddedToken("h>\n\n", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


def make_model(
    architecture: str, vocab_size: int, *, tie: bool = False, seed: int = 0, num_kv_heads: int = 1
) -> PreTrainedModel:
    """A random policy with enough spread in its logits to make sampling tell rows apart."""
    torch.manual_seed(seed)
    config_class, model_class = ARCHITECTURES[architecture]
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=num_kv_heads,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.25,
        tie_word_embeddings=tie,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return model_class(config).eval()


def save_successor_policy(folder: Path, tokenizer: PreTrainedTokenizerFast, script: list[int]) -> str:
    """Saves a Llama that greedily continues each token of `script` with the next one: its layers add nothing to the
    embedding, and the head's row of a token is the embedding of the one before it."""
    assert len(set(script)) == len(script), "a token has one successor"
    model = make_model("llama", len(tokenizer))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter.zero_()
        for token, successor in pairwise(script):
            model.lm_head.weight[successor] = 10 * model.model.embed_tokens.weight[token]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(engine: Engine, requests: Iterable[Request]) -> dict[int, Completion]:
    """Submits everything, then steps until nothing is in flight; each request must be answered once."""
    for request in requests:
        engine.submit(request)
    completions = {}
    while engine.num_in_flight:
        for completion in engine.step():
            assert completion.id not in completions
            completions[completion.id] = completion
    return completions


def random_requests(vocab_size: int, count: int, **options: object) -> list[Request]:
    """Ragged prompts and limits, a seed for each."""
    draw = random.Random(0)
    return [
        Request(
            id=number,
            token_ids=tuple(draw.randrange(2, vocab_size) for _ in range(draw.randrange(1, 60))),
            max_tokens=draw.randrange(1, 50),
            seed=number,
            **options,
        )
        for number in range(count)
    ]


def forward_log_probs(model: PreTrainedModel, request: Request, completion: Completion) -> torch.Tensor:
    """Log-probs of the sampled tokens by one plain forward pass over the whole sequence."""
    token_ids = torch.tensor([request.token_ids + completion.token_ids])
    with torch.no_grad():
        log_probs = model(token_ids).logits[0].double().log_softmax(-1)
    start = len(request.token_ids)
    return log_probs[start - 1 : -1].gather(1, token_ids[0, start:, None])[:, 0]
