"""Rows that share what they begin with: log-probs, entropies and gradients are those of flat rows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import flash_attention_mask

from appo.core.prefix_tree import PrefixTree
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.tree_attention import TreeLayout, tree_sdpa
from tests.policy.double_norms import keep_double

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOWS = {"head_dim": 8, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS = {
    "Llama": LlamaConfig(**SIZES),
    "Qwen2": Qwen2Config(**SIZES),
    "Qwen3": Qwen3Config(**SIZES, head_dim=8),
    "Gemma 2": Gemma2Config(**SIZES, **WINDOWS),
    "Gemma 3": Gemma3TextConfig(**SIZES, **WINDOWS),
    "learned positions": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
    "experts": Qwen3MoeConfig(**SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
}


def model_of(name: str, dtype: torch.dtype = torch.float32, **options) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), **options).to(dtype).eval()
    # Weights large enough that another row or another position would show.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 4.0
    if dtype == torch.float64:
        keep_double(model)
    return model


def random_rows(depth: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of two prompts' trees: roots, branches, ..., and tokens that are not scored among them."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> torch.Tensor:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, 64, (length,), generator=generator)

    rows = []
    for _ in range(2):
        prompt = tokens(17, 24)
        layer = [torch.cat([prompt, tokens(20, 45)]) for _ in range(2)]
        rows += layer
        for _ in range(depth - 1):
            cuts = [int(torch.randint(18, len(row), (), generator=generator)) for row in layer]
            layer = [torch.cat([row[:cut], tokens(1, 30)]) for row, cut in zip(layer, cuts, strict=True)]
            rows += layer
    order = torch.randperm(len(rows), generator=generator)
    token_ids = pad_sequence([rows[i] for i in order], batch_first=True)
    is_token = torch.arange(token_ids.shape[1]) < torch.tensor([len(rows[i]) for i in order]).unsqueeze(-1)
    mask = is_token & (torch.rand(token_ids.shape, generator=generator) < 0.8)
    mask[:, :10] = False
    return token_ids, mask


def evaluated(evaluate: PolicyLogProbs, token_ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Log-probs, entropies, and the gradient of both by all parameters."""
    evaluate.model.zero_grad()
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    log_probs, entropies = evaluate(token_ids, mask)
    ((log_probs + 0.3 * entropies) * weights).sum().backward()
    gradients = [parameter.grad.clone() for parameter in evaluate.model.parameters() if parameter.grad is not None]
    assert gradients
    return [log_probs.detach(), entropies.detach(), *gradients]


def both_ways(model: PreTrainedModel, token_ids: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """Relative distances of what a tree gives from what flat rows give; the tree is there, and is smaller."""
    evaluate = PolicyLogProbs(model)
    assert evaluate.shares
    tree = evaluate._sequences.tree(token_ids, F.pad(mask[:, 1:], (0, 1)))
    assert tree is not None
    assert tree.num_tokens < 0.85 * tree.num_row_tokens
    shared = evaluated(evaluate, token_ids, mask)
    evaluate._sequences.shares = False
    assert evaluate._sequences.tree(token_ids, mask) is None
    flat = evaluated(evaluate, token_ids, mask)
    return [float((ours - right).norm() / right.norm()) for ours, right in zip(shared, flat, strict=True)]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [(name, torch.float64, 1e-10) for name in CONFIGS if name != "experts"]  # whose products have no float64
    + [(name, torch.float32, 1e-5) for name in CONFIGS],
)
def test_a_tree_gives_what_flat_rows_give_with_the_same_gradient(name, dtype, tolerance, depth):
    assert max(both_ways(model_of(name, dtype), *random_rows(depth, seed=depth))) < tolerance


def test_gradient_checkpointing_gives_the_same():
    model = model_of("Llama").train()
    model.gradient_checkpointing_enable()
    assert max(both_ways(model, *random_rows(3, seed=3))) < 1e-5


def test_in_half_precision_a_tree_is_as_near_as_flat_rows_are_to_all_digits():
    token_ids, mask = random_rows(2, seed=2)
    model = model_of("Qwen2")
    evaluate = PolicyLogProbs(model)
    right = evaluated(evaluate, token_ids, mask)
    distances = []
    for shares in (True, False):
        evaluate._sequences.shares = shares
        with torch.autocast("cpu", torch.bfloat16):
            ours = evaluated(evaluate, token_ids, mask)
        distances.append(sum(float((a - b).norm() / b.norm()) for a, b in zip(ours, right, strict=True)) / len(ours))
    assert distances[0] < 1.2 * distances[1] < 1.0


def test_every_distinct_token_goes_once_through_the_layers_and_once_through_the_lm_head():
    model = model_of("Llama")
    evaluate = PolicyLogProbs(model)
    token_ids = torch.randint(3, 64, (1, 40)).repeat(3, 1)
    token_ids[2, 30:] += 1 - 2 * (token_ids[2, 30:] > 60).long()
    mask = torch.zeros(3, 40, dtype=torch.bool)
    mask[:, 20:] = True
    assert evaluate.shares
    seen, scored = [], []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    log_probs = evaluate._head.log_probs
    object.__setattr__(evaluate._head, "log_probs", lambda *args: scored.append(len(args[0])) or log_probs(*args))
    evaluate(token_ids, mask)
    # The last token predicts nothing. Two rows are the same, the third one shares 30 tokens, 10 of them scored.
    assert (seen, scored) == ([39 + 9], [20 + 10])


def layouts() -> list[TreeLayout]:
    found = []
    for depth in (1, 2, 3):
        token_ids, mask = random_rows(depth, seed=depth)
        found.append(TreeLayout(PrefixTree.of(token_ids, mask.cumsum(-1).argmax(-1) + 1), torch.device("cpu")))
    return found


@pytest.mark.parametrize("layout", layouts(), ids=["1", "2", "3"])
def test_the_kernel_of_a_cpu_and_the_one_of_any_device_agree(layout):
    # Of the latter a GPU takes the keys of each segment and its ancestors, with a mask aligned to the end.
    num_tokens = sum(len(segment) for segment in layout.segments)
    tensors = [torch.randn(1, 4, num_tokens, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = torch.randn(1, 4, num_tokens, 8, dtype=torch.float64)
    ours = tree_sdpa(*tensors, layout, scale=0.3)
    # A window that is nowhere too short changes nothing but the path.
    others = tree_sdpa(*tensors, layout, scale=0.3, dropout=1e-12)
    windowed = tree_sdpa(*tensors, layout, window=layout.longest - 1, scale=0.3)
    expected = torch.autograd.grad((ours * weights).sum(), tensors)
    for right, mine in zip(torch.autograd.grad((others * weights).sum(), tensors), expected, strict=True):
        torch.testing.assert_close(mine, right)
    torch.testing.assert_close(ours, others)
    assert not torch.equal(windowed, ours)


def varlen_attention(
    module, query, key, value, attention_mask, cu_seq_lens_q=None, cu_seq_lens_k=None, max_length_q=None,
    max_length_k=None, scaling=None, sliding_window=None, **kwargs,
):  # fmt: skip
    """What FlashAttention computes of sequences of unlike length, by its documentation; itself, it needs a GPU."""
    assert attention_mask is None
    if cu_seq_lens_q is None:
        cu_seq_lens_q = cu_seq_lens_k = torch.tensor([0, query.shape[2]], dtype=torch.int32)
        max_length_q = max_length_k = query.shape[2]
    assert (cu_seq_lens_q.dtype, cu_seq_lens_k.dtype) == (torch.int32, torch.int32)
    assert (max_length_q, max_length_k) == (cu_seq_lens_q.diff().max(), cu_seq_lens_k.diff().max())
    assert (query.shape[2], key.shape[2]) == (cu_seq_lens_q[-1], cu_seq_lens_k[-1])
    key, value = (repeat_kv(x, module.num_key_value_groups) for x in (key, value))
    parts = []
    bounds = [cu.tolist() for cu in (cu_seq_lens_q, cu_seq_lens_k)]
    for q0, q1, k0, k1 in zip(bounds[0][:-1], bounds[0][1:], bounds[1][:-1], bounds[1][1:], strict=True):
        distance = torch.arange(q1 - q0).unsqueeze(-1) + (k1 - k0) - (q1 - q0) - torch.arange(k1 - k0)
        sees = (distance >= 0) & (distance < (sliding_window or k1))
        q, k, v = query[:, :, q0:q1], key[:, :, k0:k1], value[:, :, k0:k1]
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scaling))
    return torch.cat(parts, 2).transpose(1, 2), None


@pytest.mark.parametrize("name", ["Llama", "Gemma 3"])
def test_flash_attention_is_told_of_each_segment_and_of_the_keys_before_it(name):
    AttentionInterface.register("varlen_flash", varlen_attention)
    AttentionMaskInterface.register("varlen_flash", flash_attention_mask)
    model = model_of(name)
    model.config._attn_implementation_internal = "varlen_flash"
    assert PolicyLogProbs(model)._sequences.is_flash
    assert max(both_ways(model, *random_rows(3, seed=3))) < 1e-5


def test_a_model_of_which_a_tree_makes_another_is_packed_flat_and_says_so(caplog):
    model = model_of("Llama")

    def count_places(module, args, kwargs):
        """As a model that counts where tokens stand in what it is given, and not where it is told that they stand."""
        if kwargs.get("prefix_tree") is not None:
            kwargs["position_ids"] = torch.arange(kwargs["input_ids"].shape[1]).unsqueeze(0)
        return args, kwargs

    model.get_decoder().register_forward_pre_hook(count_places, with_kwargs=True)
    evaluate = PolicyLogProbs(model)
    assert not evaluate.shares
    assert evaluate._sequences.packs
    evaluate(*random_rows(1, seed=1))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("rows of LlamaForCausalLM do not share what they begin with alike, which is slower: what")


def test_rows_that_are_padded_share_nothing():
    model = model_of("Llama", attn_implementation="eager")
    evaluate = PolicyLogProbs(model)
    assert not evaluate.shares
    assert max(abs(x).max() for x in evaluate(*random_rows(1, seed=1))) > 0.0
