"""Rows of unlike length: what each would give alone, without work on padding."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    FalconH1Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
)

from appo.policy.attention import without_cudnn
from appo.policy.packing import SequenceForward, padded_spans
from appo.policy.precision import float32_products

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "attention": LlamaConfig(**SIZES),
    "grouped heads": LlamaConfig(**SIZES, num_key_value_heads=1),
    "sliding window": MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=3),
    "learned positions": GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
    "another attention": LlamaConfig(**SIZES, attn_implementation="eager"),
    "state": MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2),
    "attention and state": FalconH1Config(
        **SIZES, num_key_value_heads=1, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8, mamba_d_state=8
    ),
    "state that layers do not name": RecurrentGemmaConfig(
        **SIZES, head_dim=8, num_key_value_heads=1, lru_width=16, attention_window_size=12
    ),
}
PACKED = {"attention", "grouped heads", "sliding window", "learned positions"}
each_config = pytest.mark.parametrize("name", CONFIGS)

LENGTHS = [9, 4, 7, 0, 8]


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).eval()
    # Weights large enough that another row or another position would show.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 5.0
    return model


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and the wanted positions: every second one, from the end of each row on."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(LENGTHS).unsqueeze(-1)
    positions = torch.arange(12)
    return torch.randint(3, 32, (5, 12), generator=generator), (positions < lengths) & ((lengths - positions) % 2 == 1)


@each_config
def test_every_row_gives_what_it_gives_alone_with_the_same_gradient(name):
    model = model_of(name)
    alone = copy.deepcopy(model)
    token_ids, is_wanted = rows()
    outputs = SequenceForward(model, model.get_decoder())(token_ids, is_wanted)
    expected = torch.cat(
        [
            alone.get_decoder()(input_ids=token_ids[row : row + 1, :length]).last_hidden_state[0][
                is_wanted[row, :length]
            ]
            for row, length in enumerate(LENGTHS)
            if length
        ]
    )
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()
    for (label, ours), right in zip(model.named_parameters(), alone.parameters(), strict=True):
        if right.grad is not None:
            torch.testing.assert_close(ours.grad, right.grad, atol=1e-4, rtol=1e-3, msg=lambda text, n=label: n + text)


@each_config
def test_padding_is_at_most_five_percent_and_none_where_rows_are_packed(name):
    model = model_of(name)
    forward = SequenceForward(model, model.get_decoder())
    computed = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    forward(*rows())
    assert forward.packs == (name in PACKED)
    if forward.packs:
        assert computed == [sum(LENGTHS)]
    else:
        assert sum(LENGTHS) >= 0.95 * sum(computed)


class Attended(TorchFunctionMode):
    """Notes how many heads of queries and of keys reach torch's attention, and whether cuDNN's may compute it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: set[tuple[int, int]] = set()
        self.cudnn: set[bool] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.heads.add((args[0].shape[1], args[1].shape[1]))
            self.cudnn.add(torch.backends.cuda.cudnn_sdp_enabled())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(
    ("dtype", "autocast", "expected"),
    [(torch.float32, False, (2, 2)), (torch.float32, True, (2, 1)), (torch.bfloat16, False, (2, 1))],
)
def test_in_float32_each_head_has_its_keys_since_no_kernel_of_a_gpu_for_shared_ones_is_frugal(
    packs, dtype, autocast, expected
):
    model = model_of("grouped heads").to(dtype)
    forward = SequenceForward(model, model.get_decoder())
    forward.packs = packs
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Attended() as attended:
        forward(torch.arange(3, 13).view(2, 5), torch.ones(2, 5, dtype=torch.bool))
    assert attended.heads == {expected}


def test_no_kernel_that_is_planned_anew_for_every_length_computes_rows():
    model = model_of("attention")
    with Attended() as attended:
        SequenceForward(model, model.get_decoder())(*rows())
    # The probe of padded rows comes before the model's attention is exchanged.
    assert False in attended.cudnn
    with Attended() as attended:
        SequenceForward(model, model.get_decoder())(*rows())
    assert attended.cudnn == {False}
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_what_stands_behind_the_last_wanted_position_is_not_computed():
    model = model_of("attention")
    forward = SequenceForward(model, model.get_decoder())
    seen = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    token_ids = torch.arange(3, 15).view(2, 6)
    is_wanted = torch.zeros(2, 6, dtype=torch.bool)
    is_wanted[0, 2] = is_wanted[1, 0] = True
    forward(token_ids, is_wanted)
    assert seen == [[[3, 4, 5, 9]]]


def test_a_model_that_was_packed_still_masks_padding_on_the_left_and_is_saved_as_it_was(tmp_path):
    model = model_of("attention")
    plain = copy.deepcopy(model)
    assert SequenceForward(model, model.get_decoder()).packs
    token_ids = torch.randint(3, 32, (2, 5))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    torch.testing.assert_close(model(token_ids, mask).logits[mask.bool()], plain(token_ids, mask).logits[mask.bool()])
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path)._attn_implementation in (None, "sdpa")
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


class WithoutPositions(torch.nn.Module):
    """A decoder that drops what it is told about rows, as one that knows nothing of packing does."""

    def __init__(self, decoder: torch.nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids, attention_mask=None, use_cache=False, **kwargs):
        mask = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        return self.decoder(input_ids=input_ids, attention_mask=mask, use_cache=use_cache)


def test_a_model_whose_rows_would_see_each_other_is_padded(caplog):
    model = model_of("attention")
    assert not SequenceForward(model, WithoutPositions(model.get_decoder())).packs
    assert model.config._attn_implementation == "sdpa"
    assert "LlamaForCausalLM are padded instead of packed, which is slower: what it makes of packed rows" in caplog.text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("attention", None),
        ("another attention", "it attends by eager, not by sdpa or FlashAttention"),
        ("state", "it carries a state from token to token"),
        ("state that layers do not name", "it carries a state from token to token"),
    ],
)
def test_padding_instead_of_packing_is_warned_of_with_its_reason(name, reason, caplog):
    model = model_of(name)
    SequenceForward(model, model.get_decoder())
    reasons = [record.getMessage().partition(", which is slower: ")[2] for record in caplog.records]
    assert reasons == ([reason] if reason else [])


def test_rows_are_compared_with_all_digits_of_float32_and_the_setting_comes_back():
    model, seen = model_of("attention"), []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args: seen.append(torch.backends.cuda.matmul.fp32_precision)
    )
    with float32_products("tf32"):
        assert SequenceForward(model, model.get_decoder()).packs
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert {*seen} == {"ieee"}


class Recorder(torch.nn.Module):
    """A decoder that returns the embedded tokens and keeps what it was told: FlashAttention itself needs a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(32, 4)
        self.told: dict[str, object] = {}

    def forward(self, input_ids, **kwargs):
        self.told = kwargs
        return (self.embedding(input_ids),)


def test_flash_attention_is_told_where_rows_begin_and_how_long_the_longest_is():
    model, decoder = model_of("attention"), Recorder()
    model.config._attn_implementation_internal = "flash_attention_2"
    forward = SequenceForward(model, decoder)
    token_ids, is_wanted = rows()
    assert forward.packs
    torch.testing.assert_close(forward(token_ids, is_wanted), decoder.embedding(token_ids[is_wanted]))
    assert "attention_mask" not in decoder.told
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert decoder.told[name].tolist() == [0, 9, 13, 20, 28]
        assert decoder.told[name].dtype == torch.int32
    assert decoder.told["max_length_q"] == decoder.told["max_length_k"] == 9
    assert decoder.told["position_ids"].tolist() == [[*range(9), *range(4), *range(7), *range(8)]]


@pytest.mark.parametrize("name", ["state", "attention and state", "state that layers do not name"])
def test_a_state_passes_from_row_to_row_whatever_the_attention(name):
    model = model_of(name)
    model.config._attn_implementation_internal = "flash_attention_2"
    assert not SequenceForward(model, model.get_decoder()).packs


@pytest.mark.parametrize(
    ("lengths", "spans"),
    [
        ([100, 96, 80], [(0, 2), (2, 3)]),
        ([100, 95, 100, 20], [(0, 3), (3, 4)]),
        ([20, 100], [(0, 1), (1, 2)]),
        ([0, 10, 0, 10, 10, 0], [(1, 2), (3, 5)]),
        ([], []),
    ],
)
def test_neighbors_are_padded_together_while_padding_is_small(lengths, spans):
    assert [(span.start, span.stop) for span in padded_spans(lengths, 0.05)] == spans


def test_threads_share_one_switch_of_cudnn():
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with without_cudnn():
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with without_cudnn():
        thread.start()
        entered.wait(10)
    # The other one is still in it, and leaves last.
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    left.set()
    thread.join()
    assert torch.backends.cuda.cudnn_sdp_enabled()
