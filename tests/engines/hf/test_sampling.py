import pytest
import torch
from torch.overrides import TorchFunctionMode

from appo.engines import SamplingParams
from appo.engines.hf.sampling import SamplingRules, keep_most_likely, sample

CPU = torch.device("cpu")
PLAIN = SamplingRules()


def test_a_uniform_number_picks_the_token_whose_share_holds_it():
    # Shares 0.2, 0.5, 0.3 end at 0.2, 0.7, 1.
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(6, 3)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.9999999])[:, None]
    tokens, log_probs = sample(logits, uniforms, PLAIN)
    assert tokens[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    expected = torch.tensor([0.2, 0.2, 0.5, 0.5, 0.3, 0.3]).log()
    torch.testing.assert_close(log_probs[:, 0], expected)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_a_token_without_probability_is_never_drawn(uniform):
    logits = torch.full((1, 1000), float("-inf"))
    logits[0, 300:700] = torch.randn(400, generator=torch.Generator().manual_seed(0))
    tokens, log_probs = sample(logits, torch.tensor([[uniform]]), PLAIN)
    assert 300 <= int(tokens) < 700
    assert log_probs.isfinite().all()


class ParallelSums(TorchFunctionMode):
    """Sums up as a GPU does, block by block: from one to the next a sum may rise or fall by rounding alone."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") != "cumsum":
            return result
        block = torch.arange(result.shape[-1]) // 8
        return result + torch.tensor([0.0, 1e-3, -1e-3])[block % 3] * (block < block[-1])


def test_no_token_without_probability_is_drawn_where_sums_are_not_monotone():
    logits = torch.randn(20000, 64, generator=torch.Generator().manual_seed(0))
    # Of every block, the first token is ruled out: there the sum rises or falls without it.
    logits[:, ::8] = float("-inf")
    with ParallelSums():
        cumulative = logits[:1].softmax(-1).cumsum(-1)[0]
        tokens, log_probs = sample(logits, torch.rand(20000, 1, generator=torch.Generator().manual_seed(1)), PLAIN)
    assert bool((cumulative.diff() < 0).any())
    assert cumulative[8] > cumulative[7]
    assert log_probs.isfinite().all()
    torch.testing.assert_close(log_probs, logits.log_softmax(-1).gather(-1, tokens))


def test_frequencies_are_those_of_the_distribution():
    logits = torch.tensor([1.0, -1.0, 0.5, 2.0])
    uniforms = torch.rand(20000, 1, generator=torch.Generator().manual_seed(0))
    tokens, _ = sample(logits.expand(20000, 4), uniforms, PLAIN)
    frequencies = tokens[:, 0].bincount(minlength=4) / 20000
    # Four standard deviations of a share of 0.5 over 20,000 draws.
    torch.testing.assert_close(frequencies, logits.softmax(0), atol=0.014, rtol=0)


def test_each_row_keeps_its_most_likely_tokens_by_hand():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(5, 4)
    top_k = torch.tensor([[4], [2], [4], [3], [1]])
    # Row 2: 0.4 is short of 0.6, with 0.3 it is 0.7. Row 3: of 0.4, 0.3, 0.2 the first is 4/9 < 0.5.
    top_p = torch.tensor([[1.0], [1.0], [0.6], [0.5], [0.1]])
    kept = keep_most_likely(logits, top_k, top_p).isfinite()
    assert kept.tolist() == [
        [True, True, True, True],
        [False, True, False, True],
        [False, True, False, True],
        [False, True, False, True],
        [False, True, False, False],
    ]


def test_rules_that_change_nothing_are_left_out():
    rules = SamplingRules.stack([SamplingParams(), SamplingParams()], 10, CPU)
    assert (rules.temperature, rules.is_greedy, rules.filtered) == (None, None, None)


def test_a_filter_on_one_row_leaves_the_others_alone():
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(), SamplingParams(top_k=1), SamplingParams(temperature=0.5)]
    uniforms = torch.full((3, 1), 0.9)
    tokens, log_probs = sample(logits, uniforms, SamplingRules.stack(params, 8, CPU))
    assert int(tokens[1]) == int(logits[1].argmax())
    assert float(log_probs[1]) == 0.0
    torch.testing.assert_close(log_probs[0], logits[0].log_softmax(0)[tokens[0]])
    torch.testing.assert_close(log_probs[2], (logits[2] / 0.5).log_softmax(0)[tokens[2]])
