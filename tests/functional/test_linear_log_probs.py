from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from appo.functional import LogitTransform, linear_log_probs, token_log_probs


@dataclass(frozen=True)
class HeadCase:
    """A head small enough for `gradcheck`, in chunks of two tokens."""

    transform: LogitTransform
    has_bias: bool = False
    num_tokens: int = 5
    vocab_size: int = 7

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        options = {"generator": generator, "dtype": torch.float64, "requires_grad": True}
        hidden, weight = torch.randn(self.num_tokens, 3, **options), torch.randn(self.vocab_size, 3, **options)
        bias = torch.randn(self.vocab_size, **options) if self.has_bias else None
        return hidden, weight, bias, torch.randint(0, self.vocab_size, (self.num_tokens,), generator=generator)

    def chunked(self, hidden, weight, bias, token_ids, **options) -> tuple[torch.Tensor, torch.Tensor]:
        two_tokens = 2 * 2 * self.vocab_size * hidden.element_size()
        return linear_log_probs(hidden, weight, bias, token_ids, self.transform, max_bytes=two_tokens, **options)

    def plain(self, hidden, weight, bias, token_ids) -> tuple[torch.Tensor, torch.Tensor]:
        """By the definition, all logits at once."""
        logits = torch.nn.functional.linear(hidden, weight, bias) * self.transform.scale
        if self.transform.soft_cap is not None:
            logits = self.transform.soft_cap * torch.tanh(logits / self.transform.soft_cap)
        log_p = (logits / self.transform.temperature).log_softmax(-1)
        return log_p.gather(-1, token_ids[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


HEADS = {
    "plain": HeadCase(LogitTransform()),
    "bias": HeadCase(LogitTransform(), has_bias=True),
    "temperature": HeadCase(LogitTransform(temperature=0.7)),
    "scaled": HeadCase(LogitTransform(scale=0.25)),
    "soft-capped": HeadCase(LogitTransform(soft_cap=1.5)),
    "all": HeadCase(LogitTransform(scale=1.5, soft_cap=2.0, temperature=0.7), has_bias=True),
    "one chunk": HeadCase(LogitTransform(), num_tokens=2),
}
each_head = pytest.mark.parametrize("case", HEADS.values(), ids=HEADS.keys())


@each_head
def test_chunks_give_the_values_and_gradients_of_all_logits_at_once(case):
    tensors = case.tensors()
    inputs = [tensor for tensor in tensors[:3] if tensor is not None]
    weights = torch.randn(2, case.num_tokens, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, expected = case.chunked(*tensors), case.plain(*tensors)
    for value, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(value, right)
    # Each result alone, then both: a bonus for entropy adds its gradient to that of the log-probs.
    for used in ([0], [1], [0, 1]):
        grads = [
            torch.autograd.grad(sum((values[i] * weights[i]).sum() for i in used), inputs, retain_graph=True)
            for values in (ours, expected)
        ]
        for value, right in zip(*grads, strict=True):
            torch.testing.assert_close(value, right)


@each_head
def test_entropies_that_nobody_reads_change_nothing_else(case):
    tensors = case.tensors()
    inputs = [tensor for tensor in tensors[:3] if tensor is not None]
    expected, _ = case.chunked(*tensors)
    log_probs, entropies = case.chunked(*tensors, with_entropies=False)
    assert torch.equal(log_probs, expected)
    assert not entropies.requires_grad
    assert (entropies == 0.0).all()
    for ours, right in zip(*(torch.autograd.grad(each.sum(), inputs) for each in (log_probs, expected)), strict=True):
        assert torch.equal(ours, right)


@each_head
def test_gradients_of_chunks_pass_gradcheck(case):
    *differentiable, token_ids = case.tensors()
    assert torch.autograd.gradcheck(lambda *inputs: case.chunked(*inputs, token_ids), tuple(differentiable))


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, _, token_ids = HeadCase(LogitTransform()).tensors()
    HeadCase(LogitTransform()).chunked(hidden, weight.detach(), None, token_ids)[0].sum().backward()
    assert weight.grad is None
    assert hidden.grad.abs().sum() > 0


class LargestRows(TorchDispatchMode):
    """Notes how many rows of vocabulary size the tensors have that operations return."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and self.vocab_size in tensor.shape:
                self.most = max(self.most, tensor.untyped_storage().nbytes() // 4 // self.vocab_size)
        return result


def test_neither_pass_holds_the_logits_of_more_tokens_than_a_chunk():
    tokens, hidden_size, vocab_size, chunk = 64, 4, 1000, 8
    hidden, weight = torch.randn(tokens, hidden_size, requires_grad=True), torch.randn(vocab_size, hidden_size)
    weight.requires_grad_()
    saved = []
    with (
        LargestRows(vocab_size) as rows,
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x),
    ):
        log_probs, entropies = linear_log_probs(
            hidden, weight, None, torch.zeros(tokens, dtype=torch.int64), max_bytes=2 * chunk * vocab_size * 4
        )
        (log_probs - entropies).sum().backward()
    # The head itself and its gradient have fewer numbers than a chunk of logits.
    assert rows.most == chunk
    assert max(saved) == chunk * vocab_size


def test_chunks_in_half_precision_are_normalized_and_summed_in_single_precision():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(64, 8, generator=generator), torch.randn(16, 8, generator=generator)
    token_ids = torch.randint(0, 16, (64,), generator=generator)
    half = [tensor.bfloat16().requires_grad_() for tensor in (hidden, weight)]
    exact = [tensor.detach().double().requires_grad_() for tensor in half]
    one_token = 2 * 16 * 4
    log_probs, entropies = linear_log_probs(*half, None, token_ids, max_bytes=one_token)
    assert log_probs.dtype == entropies.dtype == torch.float32
    log_probs.sum().backward()
    linear_log_probs(*exact, None, token_ids)[0].sum().backward()
    assert half[1].grad.dtype == torch.bfloat16
    # One rounding to bfloat16 each of the outputs, of their gradients and of the sum, not one for each of 64 tokens.
    error = (half[1].grad.double() - exact[1].grad).norm() / exact[1].grad.norm()
    assert error < 2**-8


def test_under_autocast_the_head_is_applied_in_half_precision():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 8, generator=generator, requires_grad=True)
    weight = torch.randn(16, 8, generator=generator, requires_grad=True)
    token_ids = torch.randint(0, 16, (6,), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, _ = linear_log_probs(hidden, weight, None, token_ids)
        expected, _ = token_log_probs(torch.nn.functional.linear(hidden, weight), token_ids)
    torch.testing.assert_close(ours, expected)
    ours.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_no_tokens_have_no_log_probs():
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(9, 4, requires_grad=True)
    log_probs, entropies = linear_log_probs(hidden, weight, None, torch.zeros(0, dtype=torch.int64))
    (log_probs.sum() + entropies.sum()).backward()
    assert log_probs.shape == entropies.shape == (0,)
    assert not weight.grad.any()


def test_hidden_states_of_another_number_than_tokens_are_refused():
    with pytest.raises(ValueError, match=r"token_ids must have shape \[2\], got \[3\]"):
        linear_log_probs(torch.zeros(2, 4), torch.zeros(5, 4), None, torch.zeros(3, dtype=torch.int64))


def test_a_transform_refuses_a_temperature_of_zero():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        LogitTransform(temperature=0.0)


def test_entropies_of_a_large_vocabulary_have_the_digits_of_their_precision():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 8, generator=generator), torch.randn(150_000, 8, generator=generator)
    token_ids = torch.zeros(4, dtype=torch.int64)
    _, entropies = linear_log_probs(hidden, weight, None, token_ids)
    _, expected = linear_log_probs(hidden.double(), weight.double(), None, token_ids)
    # A product of matrices instead of a sum is ten times as far off.
    torch.testing.assert_close(entropies.double(), expected, atol=1e-4, rtol=0.0)
