"""Steps about the operations that training rests on, each against a plain way to the same values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from appo.commands.doctor.measuring import measure
from appo.commands.doctor.result import Figures, Machine, StepError
from appo.engines.base import SamplingParams
from appo.engines.hf.sampling import SamplingRules, sample
from appo.functional import linear_log_probs, token_log_probs
from appo.policy.attention import packed_sdpa

_DTYPES = (torch.float32, torch.bfloat16)
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Relative distance of two ways to one result; a wrong mask or a missing token makes it about 1."""

_BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)

_NUM_LENGTHS = 8


def attention(machine: Machine, figures: Figures) -> None:
    """Forward and backward pass of one layer with grouped heads; on a GPU no kernel may hold all scores at once."""
    num_tokens, num_heads, num_groups, size = (4096, 16, 4, 64) if machine.is_gpu else (256, 4, 2, 32)
    score_mib = num_heads * num_tokens**2 * 4 / 2**20
    figures["scores of all heads MiB"] = score_mib
    too_large = []
    for dtype in _DTYPES:
        query, key, value = (
            torch.randn(1, heads, num_tokens, size, dtype=dtype, device=machine.device, requires_grad=True)
            for heads in (num_heads, num_groups, num_groups)
        )
        copies = [tensor.repeat_interleave(num_heads // num_groups, 1) for tensor in (key, value)]
        expanded = [tensor.detach().requires_grad_() for tensor in copies]
        for backend, (name, others) in product(_BACKENDS, (("grouped", (key, value)), ("expanded", expanded))):
            title = f"{_short(dtype)} {backend.name.lower()} {name}"
            figures[title] = _attention_figure(machine, backend, query, *others)
        own = measure(machine.device, partial(_as_the_policy, _layer(num_heads // num_groups), query, key, value))
        figures[f"{_short(dtype)} as the policy attends"] = str(own)
        if own.peak_mib is not None and own.peak_mib > score_mib:
            too_large.append(_short(dtype))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        title = f"bfloat16 {backend.name.lower()}, {_NUM_LENGTHS} lengths"
        figures[title] = _lengths_figure(machine, backend, num_tokens // 4, num_heads, size)
    if too_large:
        raise StepError(
            f"attention in {', '.join(too_large)} holds the scores of all pairs of tokens",
            "trainer.precision=bf16-mixed or model.dtype=bfloat16, or fewer tokens a micro-batch",
        )


def _layer(num_groups: int) -> nn.Module:
    layer = nn.Module()
    layer.num_key_value_groups = num_groups  # type: ignore[assignment]  # read by transformers
    layer.is_causal = True  # type: ignore[assignment]
    return layer.train()


def _as_the_policy(layer: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> None:
    bounds = torch.tensor([0, query.shape[2]], dtype=torch.int32)
    packed_sdpa(layer, query, key, value, None, cu_seq_lens_q=bounds)[0].float().sum().backward()


def _plainly(query: Tensor, key: Tensor, value: Tensor) -> None:
    is_grouped = key.shape[1] != query.shape[1]
    F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=is_grouped).float().sum().backward()


def _attention_figure(machine: Machine, backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> str:
    try:
        with sdpa_kernel(backend):
            return str(measure(machine.device, partial(_plainly, query, key, value)))
    except RuntimeError as error:
        return "out of memory" if "out of memory" in str(error) else "no such kernel"


def _lengths_figure(machine: Machine, backend: SDPBackend, longest: int, num_heads: int, size: int) -> str:
    """How much slower a kernel is where no row has been as long before."""
    rows = [
        torch.randn(1, num_heads, length, size, dtype=torch.bfloat16, device=machine.device, requires_grad=True)
        for length in range(longest - _NUM_LENGTHS, longest)
    ]
    try:
        with sdpa_kernel(backend):
            _plainly(*[rows[0][:, :, :16]] * 3)  # loads the kernel
            seconds = []
            for _ in range(2):
                started = perf_counter()
                for row in rows:
                    _plainly(row, row, row)
                if machine.is_gpu:
                    torch.cuda.synchronize(machine.device)
                seconds.append(perf_counter() - started)
    except RuntimeError:
        return "no such kernel"
    return f"{1e3 * seconds[0]:.1f} ms, and {1e3 * seconds[1]:.1f} ms when they come again"


def log_probs(machine: Machine, figures: Figures) -> None:
    """The chunked kernel against all logits at once, with gradients."""
    num_tokens, hidden_size, vocab_size = (8192, 1024, 151_936) if machine.is_gpu else (256, 64, 4096)
    max_bytes = None if machine.is_gpu else 2**21
    figures |= {"tokens": num_tokens, "vocabulary": vocab_size}
    for dtype in _DTYPES:
        generator = torch.Generator().manual_seed(0)
        hidden, weight = (
            (scale * torch.randn(rows, hidden_size, generator=generator)).to(machine.device, dtype).requires_grad_()
            for rows, scale in ((num_tokens, 1.0), (vocab_size, 2.5 / hidden_size**0.5))
        )
        token_ids = torch.randint(vocab_size, (num_tokens,), generator=generator).to(machine.device)

        chunked = partial(_chunked, hidden, weight, token_ids, max_bytes)
        plain = partial(_plain, hidden, weight, token_ids)
        _compare(machine, figures, _short(dtype), dtype, {"chunked": chunked, "plain": plain})


def _chunked(hidden: Tensor, weight: Tensor, token_ids: Tensor, max_bytes: int | None) -> list[Tensor]:
    return _values_and_gradients(linear_log_probs(hidden, weight, None, token_ids, max_bytes=max_bytes), hidden, weight)


def _plain(hidden: Tensor, weight: Tensor, token_ids: Tensor) -> list[Tensor]:
    return _values_and_gradients(token_log_probs((hidden @ weight.t()).float(), token_ids, 1.0), hidden, weight)


def _values_and_gradients(outputs: tuple[Tensor, Tensor], *leaves: Tensor) -> list[Tensor]:
    log_probs, entropies = outputs
    gradients = torch.autograd.grad((log_probs + 0.1 * entropies).mean(), leaves)
    return [log_probs.detach(), entropies.detach(), *gradients]


def _compare(
    machine: Machine, figures: Figures, title: str, dtype: torch.dtype, works: Mapping[str, Callable[[], list[Tensor]]]
) -> None:
    """Times two ways to the same tensors, and holds what they return against one another."""
    results = []
    for name, work in works.items():
        measured = measure(machine.device, work)
        figures[f"{title} {name}"] = str(measured)
        results.append(measured.result)
    figures[f"{title} distance"] = largest = max(map(distance, *results))
    if not largest <= _TOLERANCES[dtype]:
        raise StepError(f"{' and '.join(works)} values differ in {title} by {largest:.2g}", "another torch or driver")


def distance(a: Tensor, b: Tensor) -> float:
    """Of a tensor from another one, as a share of the other's norm."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def sampling(machine: Machine, figures: Figures) -> None:
    """Draws many tokens from distributions most of whose tokens are ruled out, also with random numbers at the ends."""
    num_rows, vocab_size, rounds = (512, 151_936, 40) if machine.is_gpu else (64, 8192, 8)
    generator = torch.Generator(machine.device).manual_seed(0)
    smallest, largest = 0.0, 1.0 - 2.0**-24
    impossible = decreasing = 0
    for number in range(rounds):
        logits = 4.0 * torch.randn(num_rows, vocab_size, device=machine.device, generator=generator)
        ruled_out = torch.rand(num_rows, vocab_size, device=machine.device, generator=generator) < 0.9
        logits = logits.masked_fill(ruled_out, -math.inf)
        top = [SamplingParams(), SamplingParams(top_k=1000), SamplingParams(top_p=0.95)][number % 3]
        rules = SamplingRules.stack([top] * num_rows, vocab_size, machine.device)
        uniforms = torch.rand(num_rows, 1, device=machine.device, generator=generator)
        uniforms[0], uniforms[1] = smallest, largest
        tokens, log_probs = sample(logits, uniforms, rules)
        impossible += int(log_probs.isinf().sum()) + int(ruled_out.gather(-1, tokens).sum())
        decreasing += int((logits.softmax(-1).cumsum(-1).diff(dim=-1) < 0).sum())
    figures |= {
        "draws": rounds * num_rows, "impossible tokens": impossible, "places where a sum decreases": decreasing
    }  # fmt: skip
    if impossible:
        raise StepError(f"{impossible} tokens of probability 0 were drawn", "report it with this file")


def optimizer(machine: Machine, figures: Figures) -> None:
    """Five steps of AdamW in each of its implementations from the same gradients."""
    sizes = [(2048, 2048)] * 24 + [(2048,)] * 24 if machine.is_gpu else [(128, 128)] * 8 + [(128,)] * 8
    figures["parameters"] = sum(math.prod(size) for size in sizes)
    expected: list[Tensor] | None = None
    for name in ("single", "foreach", "fused"):
        generator = torch.Generator().manual_seed(0)
        starts = [torch.randn(size, generator=generator) for size in sizes]
        parameters = [nn.Parameter(start.to(machine.device)) for start in starts]
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.grad = start.to(machine.device).sin()
        steps = torch.optim.AdamW(
            parameters, lr=1e-2, foreach=name == "foreach", fused=True if name == "fused" else None
        )
        figures[name] = str(measure(machine.device, steps.step, repeats=4))
        values = [parameter.detach() for parameter in parameters]
        expected = expected or values
        largest = max(distance(a, b) for a, b in zip(values, expected, strict=True))
        figures[f"{name} distance"] = largest
        if not largest <= 1e-4:
            raise StepError(f"AdamW {name} arrives elsewhere", "another torch")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
