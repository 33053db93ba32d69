import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from appo.engines import HFEngine, Request, SamplingParams
from tests.engines.tiny_policy import (
    ARCHITECTURES,
    forward_log_probs,
    make_model,
    random_requests,
    run,
    save_successor_policy,
)
from tests.families.policies import build

GREEDY = SamplingParams(temperature=0.0)
TOP = SamplingParams(temperature=0.7, top_k=20, top_p=0.8)


def start(policy: str, **options: object) -> HFEngine:
    engine = HFEngine(device="cpu", **options)
    engine.start(policy)
    return engine


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "tied"])
@pytest.mark.parametrize("max_batch_size", [5, 64])
def test_ragged_rows_that_join_and_leave_have_the_log_probs_of_a_forward_pass(
    policies, tokenizer, architecture, max_batch_size
):
    engine = start(policies[architecture], max_batch_size=max_batch_size, prefill_tokens=100)
    model = AutoModelForCausalLM.from_pretrained(policies[architecture])
    requests = random_requests(len(tokenizer), 24)
    completions = {}
    waiting = list(requests)
    while waiting or engine.num_in_flight:
        if waiting:
            engine.submit(waiting.pop(0))
        completions.update({completion.id: completion for completion in engine.step()})
    for request in requests:
        actual = torch.tensor(completions[request.id].behavior_log_probs, dtype=torch.float64)
        expected = forward_log_probs(model, request, completions[request.id])
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


class Attended(TorchFunctionMode):
    """Notes whether cuDNN's kernel may compute torch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.cudnn: set[bool] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.cudnn.add(torch.backends.cuda.cudnn_sdp_enabled())
        return func(*args, **(kwargs or {}))


def test_no_kernel_that_is_planned_anew_for_every_length_samples(policies):
    with Attended() as attended:
        run(start(policies["llama"]), [Request(0, (5, 6, 7), max_tokens=3)])
    assert attended.cudnn == {False}


def test_a_group_computes_its_prompt_once(policies, tokenizer):
    prompt = tuple(range(10, 60))
    group = [Request(seed, prompt, max_tokens=5, seed=seed) for seed in range(4)]
    completions = run(start(policies["llama"]), group)
    # The first computes its 50 tokens; the others all but the last, which samples.
    assert [completions[seed].cached_tokens for seed in range(4)] == [0, 49, 49, 49]


def test_a_continuation_and_a_branch_reuse_what_they_share(policies):
    engine = start(policies["llama"])
    prompt = tuple(range(10, 40))
    first = run(engine, [Request(0, prompt, max_tokens=20, seed=3)])[0]
    assert len(first.token_ids) == 20
    text = prompt + first.token_ids
    # The last sampled token was never fed to the policy.
    assert run(engine, [Request(1, (*text, 5, 6), max_tokens=3)])[1].cached_tokens == 49
    assert run(engine, [Request(2, (*text[:40], 7, 8), max_tokens=3)])[2].cached_tokens == 40
    assert run(engine, [Request(3, (9, *text), max_tokens=3)])[3].cached_tokens == 0


def test_a_row_known_for_the_most_part_may_be_prefilled_beside_a_wide_one(policies, tokenizer):
    engine = start(policies["llama"])
    known = tuple(2 + number % 300 for number in range(200))
    run(engine, [Request(0, known, max_tokens=1)])
    # Padded to 100 new tokens, the first row would reach past the last of the 256 positions.
    long = Request(1, (*known, *range(50, 101)), max_tokens=4)
    wide = Request(2, tuple(range(60, 161)), max_tokens=4)
    completions = run(engine, [long, wide])
    assert completions[1].cached_tokens >= 199
    model = AutoModelForCausalLM.from_pretrained(policies["llama"])
    for request in (long, wide):
        actual = torch.tensor(completions[request.id].behavior_log_probs, dtype=torch.float64)
        expected = forward_log_probs(model, request, completions[request.id])
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_the_prefix_cache_changes_nothing_but_the_work(policies, tokenizer):
    def conversations(engine: HFEngine) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        turns = []
        requests = random_requests(len(tokenizer), 12)
        for turn in range(3):
            completions = run(engine, requests)
            turns += [(completions[r.id].token_ids, completions[r.id].behavior_log_probs) for r in requests]
            cached.append(sum(completion.cached_tokens for completion in completions.values()))
            requests = [
                Request(r.id, (*r.token_ids, *completions[r.id].token_ids, 5, 6), 20, seed=100 * turn + r.id)
                for r in requests
            ]
        return turns

    cached: list[int] = []
    with_cache = conversations(start(policies["llama"]))
    assert cached[0] == 0
    assert cached[1] > 300
    assert cached[2] > cached[1]
    without = conversations(start(policies["llama"], prefix_cache_tokens=0))
    assert cached[3:] == [0, 0, 0]
    for (tokens, log_probs), (expected_tokens, expected_log_probs) in zip(with_cache, without, strict=True):
        assert tokens == expected_tokens
        torch.testing.assert_close(torch.tensor(log_probs), torch.tensor(expected_log_probs), atol=1e-4, rtol=0)


def test_rows_of_one_batch_may_be_sampled_by_different_rules(policies, tokenizer):
    rules = (SamplingParams(), GREEDY, TOP, SamplingParams(temperature=1.7), SamplingParams(top_p=0.5))
    engine = start(policies["llama"])
    model = AutoModelForCausalLM.from_pretrained(policies["llama"])
    requests = [
        Request(number, request.token_ids, 20, seed=number, sampling=rules[number % len(rules)])
        for number, request in enumerate(random_requests(len(tokenizer), 20))
    ]
    for number, completion in run(engine, requests).items():
        request = requests[number]
        with torch.no_grad():
            logits = model(torch.tensor([request.token_ids + completion.token_ids])).logits[0].double()
        for position, (token, log_prob) in enumerate(
            zip(completion.token_ids, completion.behavior_log_probs, strict=True), len(request.token_ids) - 1
        ):
            expected = naive_distribution(logits[position], request.sampling)[token].log()
            assert log_prob == pytest.approx(float(expected), abs=1e-4)


def naive_distribution(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """The distribution that a token is drawn from, by its definition."""
    if sampling.temperature == 0.0:
        return logits.softmax(-1)
    probs = (logits / sampling.temperature).softmax(-1)
    order = sorted(range(len(probs)), key=lambda token: -float(probs[token]))
    kept = order[: sampling.top_k or len(order)]
    mass = float(probs[kept].sum())
    nucleus, total = [], 0.0
    for token in kept:
        if total / mass >= sampling.top_p:
            break
        nucleus.append(token)
        total += float(probs[token])
    result = torch.zeros_like(probs)
    result[nucleus] = probs[nucleus] / total
    return result


def script_completion(
    tmp_path, tokenizer: PreTrainedTokenizerFast, prompt: str, script: list[int], stop: tuple[str, ...]
):
    """What an engine returns whose policy continues `prompt` with the tokens of `script`."""
    prompt_ids = tokenizer.encode(prompt)
    policy = save_successor_policy(tmp_path, tokenizer, [prompt_ids[-1], *script])
    request = Request(0, tuple(prompt_ids), max_tokens=len(script), stop=stop, sampling=GREEDY)
    return run(start(policy), [request])[0]


def test_a_tag_that_is_one_token_stops(tmp_path, tokenizer):
    tag, word = tokenizer.encode("</python>"), tokenizer.encode("W")
    assert len(tag) == 1
    completion = script_completion(tmp_path, tokenizer, "What", [*word, *tag, 20, 21], ("</search>", "</python>"))
    assert completion.token_ids == (*word, *tag)
    assert (completion.finish_reason, completion.stop_string) == ("stop", "</python>")


def test_a_tag_of_several_tokens_stops_at_its_last(tmp_path, tokenizer):
    tag = tokenizer.encode("</search>")
    assert len(tag) > 1
    completion = script_completion(tmp_path, tokenizer, "What", [*tag, 20, 21], ("</search>",))
    assert completion.token_ids == tuple(tag)
    assert completion.stop_string == "</search>"


def test_characters_merged_into_the_last_token_of_a_tag_stay(tmp_path, tokenizer):
    merged = tokenizer.convert_tokens_to_ids("h>\n\n")
    start_ids = tokenizer.encode("</searc")
    completion = script_completion(tmp_path, tokenizer, "What", [*start_ids, merged, 20], ("</search>",))
    assert completion.token_ids == (*start_ids, merged)
    assert tokenizer.decode(completion.token_ids) == "</search>\n\n"
    assert completion.stop_string == "</search>"


def test_a_stop_string_in_the_prompt_does_not_count(tmp_path, tokenizer):
    end = tokenizer.encode(">")
    # The prompt holds the tag, and all of another but the last character, which is then sampled.
    completion = script_completion(tmp_path, tokenizer, "</search> </search", [*end, 20, 21], ("</search>",))
    assert completion.token_ids == (*end, 20, 21)
    assert (completion.finish_reason, completion.stop_string) == ("length", None)


def test_a_stop_character_of_several_tokens_stops_at_its_last_byte(tmp_path, tokenizer):
    character = tokenizer.encode("語")
    assert len(character) == 3
    completion = script_completion(tmp_path, tokenizer, "What", [*character, 20], ("語",))
    assert completion.token_ids == tuple(character)


def test_of_two_stop_strings_in_one_token_the_first_to_end_is_named(tmp_path, tokenizer):
    tag = tokenizer.encode("</python>")
    completion = script_completion(tmp_path, tokenizer, "What", [*tag, 20], ("thon>", "pyt"))
    assert completion.stop_string == "pyt"


@pytest.mark.parametrize("end_ids", [17, [40, 17]])
def test_end_tokens_of_the_generation_config_end_a_row(tmp_path, tokenizer, end_ids):
    model = make_model("llama", len(tokenizer))
    folder = tmp_path / "policy"
    save_successor_policy(folder, tokenizer, [10, 11, 17, 18, 1, 12])
    model.generation_config.eos_token_id = end_ids
    model.generation_config.save_pretrained(folder)
    engine = start(str(folder))
    by_config = run(engine, [Request(0, (10,), max_tokens=5, sampling=GREEDY)])[0]
    assert (by_config.token_ids, by_config.finish_reason) == ((11, 17), "eos")
    by_tokenizer = run(engine, [Request(0, (18,), max_tokens=5, sampling=GREEDY)])[0]
    assert (by_tokenizer.token_ids, by_tokenizer.finish_reason) == ((1,), "eos")


@pytest.mark.parametrize("names_head", [True, False])
def test_a_tied_head_may_be_among_the_new_weights_or_not(policies, tokenizer, names_head):
    engine = start(policies["tied"])
    other = make_model("llama", len(tokenizer), tie=True, seed=1)
    weights = dict(other.named_parameters(remove_duplicate=not names_head))
    assert ("lm_head.weight" in weights) == names_head
    engine.update_weights(weights.items(), version=1)
    request = Request(0, (5, 6, 7), max_tokens=20)
    completion = run(engine, [request])[0]
    actual = torch.tensor(completion.behavior_log_probs, dtype=torch.float64)
    torch.testing.assert_close(actual, forward_log_probs(other, request, completion), atol=1e-4, rtol=0)


def test_requests_beyond_max_batch_size_wait(policies):
    engine = start(policies["llama"], max_batch_size=2)
    for number in range(5):
        engine.submit(Request(number, (5, 6), max_tokens=1, seed=number))
    assert [len(engine.step()) for _ in range(4)] == [2, 2, 1, 0]


def test_sequences_are_limited_by_max_length(policies):
    engine = start(policies["llama"], max_length=32)
    with pytest.raises(ValueError, match=r"must fit into 32 positions, got 30 \+ 3"):
        engine.submit(Request(0, (5,) * 30, max_tokens=3))
    with pytest.raises(ValueError, match="max_length must not exceed the policy's 256 positions, got 257"):
        start(policies["llama"], max_length=257)


def save_windowed_policy(folder, tokenizer, window: int) -> MistralForCausalLM:
    """A policy of 64 positions."""
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=window,
    )
    model = MistralForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["mistral", "ministral", "gemma2", "gpt_oss", "deepseek_v3", "falcon", "gptj"])
def test_samples_from_families_with_attention_of_their_own_as_a_plain_pass_says(tmp_path, family):
    # Windows of 8 tokens in all layers and in some, soft-capped scores, sinks, latent keys, one head of keys, no sdpa.
    policy = str(build(family, tmp_path))
    engine = start(policy)
    model = AutoModelForCausalLM.from_pretrained(policy, attn_implementation="eager").eval()
    requests = random_requests(model.config.vocab_size, 12)
    completions = run(engine, requests)
    for request in requests:
        actual = torch.tensor(completions[request.id].behavior_log_probs, dtype=torch.float64)
        expected = forward_log_probs(model, request, completions[request.id])
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("window", "max_length"), [(64, 0), (256, 0), (32, 32)])
def test_a_window_that_no_sequence_outgrows_is_full_attention(tmp_path, tokenizer, window, max_length):
    model = save_windowed_policy(tmp_path, tokenizer, window)
    request = Request(0, (5, 6, 7), max_tokens=29)
    completion = run(start(str(tmp_path), max_length=max_length), [request])[0]
    actual = torch.tensor(completion.behavior_log_probs, dtype=torch.float64)
    torch.testing.assert_close(actual, forward_log_probs(model, request, completion), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("llama4_text", "full attention or sliding windows only, got llama4_text with chunked_attention"),
        ("mamba", "whose past is keys and values, got mamba, which carries a state from token to token"),
    ],
)
def test_a_policy_that_it_cannot_serve_is_refused_before_it_is_loaded(tmp_path, family, reason):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"HFEngine serves policies .*{reason}.*; rollout.engine=VLLMEngine and"):
        HFEngine().start(str(tmp_path))


def test_a_policy_that_goes_on_otherwise_from_a_cache_is_refused_when_it_is_loaded(tmp_path):
    build("bloom", tmp_path)
    with pytest.raises(
        ValueError, match=r"go on from keys and values of rows of unlike length, got bloom, which fails"
    ):
        HFEngine().start(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, got 0"),
        ({"prefill_tokens": 0}, "prefill_tokens must be at least 1, got 0"),
        ({"max_length": -1}, "max_length must not be negative, got -1"),
        ({"prefix_cache_tokens": -1}, "prefix_cache_tokens must not be negative, got -1"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        HFEngine(**options)
