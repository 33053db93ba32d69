from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedModel

from appo.policy.loading import compile_layers, load_policy, load_tokenizer
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.saving import named_weights, save_policy


def tiny(**changes) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=31, **{**sizes, **changes}))


def definition(model: PreTrainedModel, row: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of one unpadded row, position by position."""
    logits = model(row.unsqueeze(0)).logits[0].double() / temperature
    log_softmax = logits.log_softmax(-1)
    return log_softmax[:-1].gather(1, row[1:, None])[:, 0], -(log_softmax.exp() * log_softmax).sum(-1)[:-1]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tied", [True, False])
def test_every_scored_token_gets_the_value_of_its_own_position(temperature, tied):
    model = tiny(tie_word_embeddings=tied)
    token_ids, lengths = torch.randint(0, 31, (3, 9)), torch.tensor([9, 6, 4])
    mask = (torch.rand(3, 9) < 0.6) & (torch.arange(9) < lengths[:, None]) & (torch.arange(9) > 0)
    log_probs, entropies = PolicyLogProbs(model, temperature)(token_ids, mask)
    for row, length in enumerate(lengths.tolist()):
        expected, expected_entropies = definition(model, token_ids[row, :length], temperature)
        scored = mask[row, 1:length]
        torch.testing.assert_close(log_probs[row, 1:length][scored].double(), expected[scored], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            entropies[row, 1:length][scored].double(), expected_entropies[scored], atol=1e-5, rtol=1e-5
        )
    assert (log_probs[~mask] == 0).all()
    assert (entropies[~mask] == 0).all()


def test_soft_capped_logits_are_those_of_the_model():
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.05, attn_implementation="eager",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    token_ids = torch.randint(3, 31, (1, 7))
    mask = torch.arange(7)[None] > 2
    log_probs, _ = PolicyLogProbs(model)(token_ids, mask)
    expected, _ = definition(model, token_ids[0], 1.0)
    torch.testing.assert_close(log_probs[0, 3:].double(), expected[2:], atol=1e-5, rtol=1e-5)


class VocabularyRows(TorchDispatchMode):
    """Notes the shapes of results whose last dimension is the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape[-1:] == (31,):
            self.shapes.add((result.numel() // 31, 31))
        return result


def test_only_scored_tokens_pass_the_lm_head():
    evaluate = PolicyLogProbs(tiny())
    token_ids, mask = torch.zeros(2, 50, dtype=torch.long), torch.zeros(2, 50, dtype=torch.bool)
    mask[0, 40:43] = True
    evaluate(token_ids, mask)  # the first use looks at the head with a few tokens
    with VocabularyRows() as rows:
        log_probs, _ = evaluate(token_ids, mask)
        log_probs.sum().backward()
    # The other one is the transposed head.
    assert rows.shapes == {(3, 31), (16, 31)}


def test_a_head_that_is_no_linear_layer_takes_the_plain_path_with_one_warning(caplog):
    model = tiny()
    model.set_output_embeddings(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 31)))
    evaluate = PolicyLogProbs(model, 0.7)
    token_ids, mask = torch.randint(0, 31, (2, 6)), torch.arange(6).expand(2, 6) > 2
    for _ in range(2):
        log_probs, entropies = evaluate(token_ids, mask)
    for row in range(2):
        expected, expected_entropies = definition(model, token_ids[row], 0.7)
        torch.testing.assert_close(log_probs[row, 3:].double(), expected[2:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropies[row, 3:].double(), expected_entropies[2:], atol=1e-5, rtol=1e-5)
    assert caplog.text.count("is not one linear layer") == 1


def test_tied_weights_are_handed_over_under_both_names():
    names = dict(named_weights(tiny(tie_word_embeddings=True)))
    assert names["lm_head.weight"].data_ptr() == names["model.embed_tokens.weight"].data_ptr()


def test_a_generation_config_that_cannot_be_saved_is_copied_and_the_policy_kept(tmp_path, policy_folder):
    model = load_policy(str(policy_folder))
    # Models of the hub come with such a one: without sampling, a temperature says nothing.
    model.generation_config.update(temperature=0.7, do_sample=False, eos_token_id=5)
    save_policy(model, load_tokenizer(str(policy_folder)), tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (saved.generation_config.temperature, saved.generation_config.eos_token_id) == (0.7, 5)
    assert model.generation_config.temperature == 0.7
    for name, tensor in model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], tensor), name


@pytest.mark.parametrize("num_layers", [1, 4])
def test_layers_are_compiled_once_for_all_of_them_and_for_no_probe(num_layers, monkeypatch):
    model, graphs = tiny(num_hidden_layers=num_layers), []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=compiler))
    torch.compiler.reset()
    compile_layers(model)
    evaluate = PolicyLogProbs(model)
    assert evaluate._sequences.packs
    assert not graphs
    for length in (7, 9):
        token_ids = torch.randint(0, 31, (2, length))
        evaluate(token_ids, (torch.arange(length) > 2).expand(2, length))
    # What comes before the attention, and what comes after it.
    assert 2 <= len(graphs) <= 4
