"""What every engine promises, checked for each registered engine that can run here."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from appo.engines import ENGINES, Engine, Request, SamplingParams
from tests.engines.tiny_policy import forward_log_probs, make_model, random_requests, run
from tests.engines.vllm_installed import SHARE

END_ID = 1
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(name, marks=[pytest.mark.vllm] if name.startswith("VLLM") else []) for name in ENGINES),
        pytest.param("HFEngine", id="HFEngine on a GPU", marks=pytest.mark.gpu),
    ],
)
def engine(request: pytest.FixtureRequest, policies: dict[str, str]) -> Iterator[Engine]:
    """A started engine."""
    engine = ENGINES[request.param](**options_of(request))
    engine.start(policies["llama"])
    yield engine
    engine.stop()


def options_of(request: pytest.FixtureRequest) -> dict[str, object]:
    """What the engine needs to run here."""
    if request.param == "VLLMServerEngine":
        return {"addresses": [request.getfixturevalue("served_llama").address]}
    return SHARE if request.param == "VLLMEngine" else {}


@pytest.fixture(scope="module")
def model(policies: dict[str, str]) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(policies["llama"])


def test_every_request_is_answered_once_and_within_its_limit(engine, tokenizer):
    requests = random_requests(len(tokenizer), 32)
    for request in requests:
        engine.submit(request)
    assert engine.num_in_flight == 32
    completions = []
    while engine.num_in_flight:
        before = engine.num_in_flight
        ended = engine.step()
        completions += ended
        assert engine.num_in_flight == before - len(ended)
    assert sorted(completion.id for completion in completions) == list(range(32))
    for completion in completions:
        limit = requests[completion.id].max_tokens
        assert 1 <= len(completion.token_ids) == len(completion.behavior_log_probs) <= limit
        assert (completion.finish_reason == "length") == (
            len(completion.token_ids) == limit and completion.token_ids[-1] != END_ID
        )


def test_only_the_end_token_ends_a_row_early_and_it_is_kept(engine, tokenizer):
    completions = run(engine, [replace(r, max_tokens=150) for r in random_requests(len(tokenizer), 32)])
    ended = [c for c in completions.values() if c.finish_reason == "eos"]
    assert ended
    for completion in completions.values():
        assert END_ID not in completion.token_ids[:-1]
        assert (completion.token_ids[-1] == END_ID) == (completion.finish_reason == "eos")


def test_log_probs_are_those_of_a_plain_forward_pass(engine, model, tokenizer):
    requests = random_requests(len(tokenizer), 64)
    completions = run(engine, requests)
    for request in requests:
        completion = completions[request.id]
        expected = forward_log_probs(model, request, completion)
        actual = torch.tensor(completion.behavior_log_probs, dtype=torch.float64)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_greedy_takes_the_most_likely_token_and_reports_its_plain_log_prob(engine, model):
    request = Request(0, (5, 6, 7), max_tokens=12, sampling=GREEDY)
    completion = run(engine, [request])[0]
    with torch.no_grad():
        logits = model(torch.tensor([request.token_ids + completion.token_ids])).logits[0]
    assert logits.argmax(-1)[2:-1].tolist() == list(completion.token_ids)
    expected = forward_log_probs(model, request, completion)
    torch.testing.assert_close(torch.tensor(completion.behavior_log_probs).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.cpu
def test_tokens_do_not_depend_on_company_or_order(engine, tokenizer):
    requests = random_requests(len(tokenizer), 12)
    together = run(engine, requests)
    backwards = run(engine, reversed(requests))
    for request in requests:
        alone = run(engine, [request])[request.id]
        assert alone.token_ids == together[request.id].token_ids == backwards[request.id].token_ids


def test_another_seed_draws_other_tokens(engine):
    completions = run(engine, [Request(seed, (5, 6, 7), max_tokens=20, seed=seed) for seed in range(8)])
    assert len({completion.token_ids for completion in completions.values()}) == 8


@pytest.mark.cpu
def test_a_stop_string_ends_a_row_at_the_first_token_that_completes_it(engine, tokenizer: PreTrainedTokenizerFast):
    # Prompts end with a whole character: to whom one belongs that is cut in two is the engine's own affair.
    requests = [
        replace(request, token_ids=(*request.token_ids, 5), max_tokens=60)
        for request in random_requests(len(tokenizer), 48)
    ]
    free = run(engine, requests)
    stop = ("a", "on<", "é", "2")
    num_stopped = 0
    for number, completion in run(engine, [replace(request, stop=stop) for request in requests]).items():
        whole = free[number].token_ids
        texts = [tokenizer.decode(whole[:end]) for end in range(1, len(whole) + 1)]
        end = next((i for i, text in enumerate(texts, 1) if any(s in text for s in stop)), None)
        assert completion.token_ids == whole[:end]
        assert (completion.finish_reason == "stop") == (end is not None) == (completion.stop_string is not None)
        if end is not None:
            assert completion.stop_string in texts[end - 1]
            num_stopped += 1
    assert 10 < num_stopped < 48


def test_conversations_go_on_while_others_generate(engine, model, tokenizer):
    requests = {request.id: request for request in random_requests(len(tokenizer), 16)}
    waiting = list(requests.values())
    num_checked = 0
    while waiting or engine.num_in_flight:
        for request in waiting[:3]:
            engine.submit(request)
        del waiting[:3]
        for completion in engine.step():
            request = requests[completion.id]
            expected = forward_log_probs(model, request, completion)
            actual = torch.tensor(completion.behavior_log_probs, dtype=torch.float64)
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
            num_checked += 1
            if completion.id < 48:
                text = (*request.token_ids, *completion.token_ids, 5, 6, 7)
                turn = replace(request, id=request.id + 16, token_ids=text, max_tokens=10, seed=request.id + 16)
                requests[turn.id] = turn
                waiting.append(turn)
    assert num_checked == 64


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(0, (), max_tokens=1), "token_ids of request 0 must not be empty"),
        (Request(0, (5,), max_tokens=0), "max_tokens of request 0 must be at least 1, got 0"),
        (Request(0, (5,) * 250, max_tokens=7), r"must fit into 256 positions, got 250 \+ 7"),
        (Request(0, (5,) * 256, max_tokens=1), r"must fit into 256 positions, got 256 \+ 1"),
        (Request(0, (5, 10**6), max_tokens=1), "token_ids of request 0 must lie in 0 .. "),
        (Request(0, (5,), max_tokens=1, stop=("",)), "stop of request 0 must not hold an empty string"),
    ],
)
def test_refuses_requests_that_can_never_be_served(engine, request_, message):
    with pytest.raises(ValueError, match=message):
        engine.submit(request_)
    assert engine.num_in_flight == 0


def test_refuses_a_second_request_of_the_same_id(engine):
    engine.submit(Request(3, (5,), max_tokens=1))
    with pytest.raises(ValueError, match="id must be unique among the requests in flight, got 3"):
        engine.submit(Request(3, (6,), max_tokens=1))
    assert [completion.id for completion in run(engine, []).values()] == [3]


def test_a_sequence_may_fill_all_positions(engine):
    completion = run(engine, [Request(0, (5,) * 250, max_tokens=6, sampling=GREEDY)])[0]
    assert len(completion.token_ids) == 6 or completion.finish_reason == "eos"


@pytest.mark.cpu
def test_new_weights_sample_from_then_on(engine, policies, tokenizer):
    requests = random_requests(len(tokenizer), 8)
    before = run(engine, requests)
    assert {completion.policy_version for completion in before.values()} == {0}
    other = make_model("llama", len(tokenizer), seed=1)
    engine.update_weights(other.named_parameters(), version=4)
    for request in requests:
        after = run(engine, [request])[request.id]
        assert after.policy_version == 4
        assert after.cached_tokens == 0
        assert after.token_ids != before[request.id].token_ids
        actual = torch.tensor(after.behavior_log_probs, dtype=torch.float64)
        torch.testing.assert_close(actual, forward_log_probs(other, request, after), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="version must be higher than the present 4, got 4"):
        engine.update_weights(other.named_parameters(), version=4)
    restart(engine, policies["llama"])
    assert run(engine, requests[:1])[0].token_ids == before[0].token_ids


def test_weights_are_not_updated_with_requests_in_flight(engine, model):
    engine.submit(Request(0, (5,), max_tokens=2))
    with pytest.raises(RuntimeError, match="requests in flight, got 1"):
        engine.update_weights(model.named_parameters(), version=1)
    assert len(run(engine, [])) == 1


def test_weights_that_do_not_fit_are_refused_and_nothing_is_sampled_from_the_rest(engine, model, policies):
    weights = dict(model.named_parameters())
    rest = {name: weight for name, weight in weights.items() if name != "model.norm.weight"}
    unfit = (
        (rest, "missing model.norm.weight"),
        ({**weights, "unknown": torch.zeros(1)}, "got 'unknown'"),
        ({**rest, "model.norm.weight": torch.zeros(3)}, r"model.norm.weight must have shape \[64\], got \[3\]"),
    )
    for version, (sent, message) in enumerate(unfit, start=1):
        with pytest.raises(ValueError, match=message):
            engine.update_weights(sent.items(), version)
        with pytest.raises(RuntimeError, match="weights must be updated before a request"):
            engine.submit(Request(0, (5,), max_tokens=1))
        engine.update_weights(weights.items(), version)
        assert len(run(engine, [Request(0, (5,), max_tokens=1)])) == 1
    restart(engine, policies["llama"])


def test_starts_once_and_does_nothing_when_stopped(engine, policies):
    with pytest.raises(RuntimeError, match="must be stopped before it is started again"):
        engine.start(policies["llama"])
    engine.stop()
    engine.stop()
    assert engine.num_in_flight == 0
    with pytest.raises(RuntimeError, match="must be started first"):
        engine.submit(Request(0, (5,), max_tokens=1))
    with pytest.raises(RuntimeError, match="must be started first"):
        engine.step()
    engine.start(policies["llama"])
    assert engine.step() == []


def restart(engine: Engine, policy: str) -> None:
    engine.stop()
    engine.start(policy)
