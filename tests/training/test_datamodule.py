"""The data module as a trainer uses it, without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from appo.core.trajectory import Trajectory
from appo.distributed import comm
from appo.monitoring.trajectory_files import read_trajectories
from appo.prompts import BenchmarkQuestions, JsonlQuestions, MixedQuestions, ToolInstructions, WorldQuestions
from appo.tools import TagSyntax
from appo.training.datamodule import RolloutDataModule
from tests.distributed.processes import as_processes
from tests.small_run import run

SCHEMA = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f'{{"question": "Is {i} even?", "answer": "{i % 2 == 0}"}}\n' for i in range(12)))
    return JsonlQuestions(train=str(path), test=None)


@pytest.fixture
def open_data(questions, policy_folder):
    """Makes a data module that is set up to fit."""

    def open_data(source=None, **options):
        data = RolloutDataModule(source or questions, str(policy_folder), **{"prompts_per_iteration": 4, **options})
        data.setup("fit")
        return data

    return open_data


def ids(data, iteration):
    return [prompt.id for prompt in data.iteration_prompts(iteration)]


def test_ids_and_order_are_those_of_the_last_run(open_data):
    first, second = open_data(), open_data()
    assert [ids(first, number) for number in range(7)] == [ids(second, number) for number in range(7)]
    assert ids(open_data(seed=1), 0) != ids(first, 0)
    assert sorted(name for number in range(3) for name in ids(first, number)) == sorted(str(i) for i in range(1, 13))


def shares(rank, folder, policy):
    """Writes which prompts a process gets, and how long they are."""
    comm.join(2, 60.0)
    data = RolloutDataModule(JsonlQuestions(f"{folder}/long.jsonl", test=None), policy, 8, 4)
    data.setup("fit")
    prompts = data.iteration_prompts(0)
    text = json.dumps([[prompt.id, len(prompt.token_ids)] for prompt in prompts])
    Path(folder, f"{rank}.json").write_text(text)
    comm.leave()


@pytest.mark.distributed
def test_processes_share_a_mini_batch_by_its_tokens(tmp_path, policy_folder):
    lengths = [1, 2, 3, 4, 5, 6, 40, 41]
    questions = (f'{{"question": "{"a " * length}", "answer": "1"}}\n' for length in lengths)
    (tmp_path / "long.jsonl").write_text("".join(questions))
    as_processes(shares, tmp_path, str(tmp_path), str(policy_folder))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert len(first) == len(second) == 4
    assert {name for name, _ in first}.isdisjoint(name for name, _ in second)
    for start in (0, 2):
        ours, theirs = (sorted(length for _, length in share[start : start + 2]) for share in (first, second))
        # Of four prompts, the process with the longest has the shortest beside it.
        longest, other = (ours, theirs) if max(ours) > max(theirs) else (theirs, ours)
        assert min(longest) <= min(other)


def shares_of_known(rank, folder, policy):
    """Writes which prompts a process gets when responses are known, also after it is resumed."""
    comm.join(2, 60.0)

    def open_data():
        data = RolloutDataModule(JsonlQuestions(f"{folder}/train.jsonl", test=None), policy, 4)
        data.setup("fit")
        return data

    data = open_data()
    before = ids(data, 0)
    # Each process has sampled two of the four prompts.
    data.record_responses([answered(prompt, 10 ** int(prompt.id)) for prompt in data.iteration_prompts(0)])
    resumed = open_data()
    resumed.load_state_dict(json.loads(json.dumps(data.state_dict())))
    found = [before, ids(data, 0), ids(data, 1), ids(resumed, 1)]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    comm.leave()


def answered(prompt, length):
    """A trajectory of a prompt with so many tokens behind it."""
    num_prompt = len(prompt.token_ids)
    mask = torch.arange(num_prompt + length) >= num_prompt
    nothing = torch.zeros(len(mask))
    return Trajectory(prompt, torch.ones(len(mask), dtype=torch.int64), mask, nothing, nothing.long(), (), (), "eos")


@pytest.mark.distributed
def test_processes_share_a_mini_batch_by_how_long_responses_were(tmp_path, policy_folder):
    (tmp_path / "train.jsonl").write_text("".join(f'{{"question": "{i}", "answer": "1"}}\n' for i in range(4)))
    as_processes(shares_of_known, tmp_path, str(tmp_path), str(policy_folder))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for share in (first, second):
        # What has been drawn stays, also for those that were sampled ahead.
        assert share[0] == share[1]
        # 10,000 tokens beside 10, and 1,000 beside 100.
        assert sorted(share[2]) in (["1", "4"], ["2", "3"])
        assert share[2] == share[3]
    assert sorted(first[2] + second[2]) == ["1", "2", "3", "4"]


def test_a_checkpoint_in_the_middle_of_a_pass_is_resumed(open_data):
    whole, stopped = open_data(), open_data()
    for number in range(2):
        stopped.iteration_prompts(number)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = open_data()
    resumed.load_state_dict(state)
    assert [ids(resumed, number) for number in range(2, 8)] == [ids(whole, number) for number in range(2, 8)]
    resumed = open_data(prompts_per_iteration=2)
    resumed.load_state_dict(state)
    assert ids(resumed, 2) + ids(resumed, 3) == ids(whole, 2)
    with pytest.raises(ValueError, match=r"data\.prompts_per_iteration .* must stay 4 .* for iteration 1, .* got 2"):
        resumed.iteration_prompts(1)
    with pytest.raises(ValueError, match=r"data\.seed must be that of the resumed run, 0, got 1"):
        open_data(seed=1).load_state_dict(state)


def test_an_evaluation_takes_a_checkpoint_whatever_its_data(questions, open_data, policy_folder):
    state = open_data().state_dict()
    data = RolloutDataModule(JsonlQuestions(test=questions.train), str(policy_folder), seed=5)
    data.setup("test")
    data.load_state_dict(state)
    assert data.state_dict() == {}
    assert len(data.evaluation_batches("test")[0]) == 12


def mixture(folder, num_few, num_many, **weights):
    """Questions of two sources of unlike sizes."""
    sources = {}
    for name, number in (("few", num_few), ("many", num_many)):
        path = Path(folder, f"{name}.jsonl")
        path.write_text("".join(f'{{"question": "Is {i} {name}?", "answer": "?"}}\n' for i in range(number)))
        sources[name] = JsonlQuestions(train=str(path), test=None)
    return MixedQuestions(sources, weights)


def test_a_mixture_is_drawn_by_weight(open_data, tmp_path):
    data = open_data(mixture(tmp_path, 12, 36, few=3.0, many=1.0))
    for number in range(3):
        assert [prompt.source for prompt in data.iteration_prompts(number)].count("few") == 3


def replaced(rank, folder, policy):
    """Writes which prompts a process has, and which may replace those of all."""
    comm.join(2, 60.0)
    data = RolloutDataModule(mixture(Path(folder, str(rank)), 70, 930, few=1.0, many=1.0), policy, 16)
    data.setup("fit")
    found = [ids(data, 3), [prompt.id for prompt in data.replacement_prompts(3)]]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    comm.leave()


@pytest.mark.distributed
def test_replacements_are_those_of_the_mixture_in_all_processes(tmp_path, policy_folder):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    as_processes(replaced, tmp_path, str(tmp_path), str(policy_folder))
    (first, others), (second, same) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert others == same
    assert len(first) == len(second) == 8
    assert len({*first, *second, *others}) == 16 + len(others)
    share = sum(name.startswith("few/") for name in others) / len(others)
    # Among all questions, 0.07; three standard deviations are about 0.13.
    assert share == pytest.approx(0.5, abs=0.13)


def test_removed_questions_are_not_drawn(questions, open_data, tmp_path):
    (tmp_path / "bamboogle.jsonl").write_text('{"question": "is 3 EVEN", "answer": ["no"]}\n')
    benchmark = BenchmarkQuestions("bamboogle", folder=str(tmp_path))
    # Without number 3, in line 4, eleven are left.
    data = open_data(contamination_sources=(benchmark,), contaminated_rows="remove", prompts_per_iteration=11)
    assert "4" not in ids(data, 0)
    assert "4" in ids(open_data(contamination_sources=(benchmark,), prompts_per_iteration=12), 0)


def test_too_few_usable_questions_are_refused(questions, open_data):
    with pytest.raises(ValueError, match=r"prompts_per_iteration must not exceed the number of training questions 12"):
        open_data(prompts_per_iteration=13)


def test_addition_and_template_options_reach_the_prompts(open_data):
    plain, added = open_data(), open_data(system_addition="Mark stages.")
    texts = [data.tokenizer.decode(data.iteration_prompts(0)[0].token_ids) for data in (plain, added)]
    assert texts[1] == f"<|system|>Mark stages.<|end|>{texts[0]}"


@pytest.fixture
def tool_policy(policy_folder, tmp_path):
    """A folder with a tokenizer whose chat template takes tools."""
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "policy")
    (tmp_path / "policy/config.json").write_bytes((policy_folder / "config.json").read_bytes())
    return str(tmp_path / "policy")


def test_tools_may_be_described_late(questions, tool_policy):
    def open_data(**options):
        data = RolloutDataModule(questions, tool_policy, prompts_per_iteration=4, **options)
        data.setup("fit")
        return data

    early, late, without = open_data(tool_schemas=[SCHEMA]), open_data(), open_data()
    late.describe_tools([SCHEMA])
    assert late.iteration_prompts(1) == early.iteration_prompts(1) != without.iteration_prompts(1)
    assert '"look_up"' in late.tokenizer.decode(late.iteration_prompts(1)[0].token_ids)
    late.describe_tools([])
    assert late.iteration_prompts(1) == without.iteration_prompts(1)
    long = late.iteration_prompts(0)[0]
    narrow = open_data(max_prompt_tokens=len(long.token_ids) + 8)
    with pytest.raises(ValueError, match=r"at most data\.max_prompt_tokens"):
        narrow.describe_tools([SCHEMA])


def test_tools_are_told_in_words_to_questions_that_take_them(questions, policy_folder):
    told = ToolInstructions(TagSyntax(instructions="Tools: {tools}"), [SCHEMA])
    data = RolloutDataModule(questions, str(policy_folder), prompts_per_iteration=4, max_prompt_tokens=400)
    data.setup("fit")
    plain = data.first_prompts(1)[0].token_ids
    assert data.describe_tools([], told)
    assert len(data.first_prompts(1)[0].token_ids) > len(plain)
    assert not data.describe_tools([], told)
    world = RolloutDataModule(WorldQuestions(), str(policy_folder), prompts_per_iteration=4)
    world.setup("fit")
    assert not world.describe_tools([], told)


def test_questions_that_tools_make_too_long_are_not_drawn(questions, tool_policy, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "Is one hundred million even, or is it not?", "answer": "x"}\n' + path.read_text())

    def open_data(max_prompt_tokens, **options):
        data = RolloutDataModule(
            questions, tool_policy, 4, max_prompt_tokens=max_prompt_tokens, unusable_rows="skip", **options
        )
        data.setup("fit")
        return data

    roomy = open_data(2048, tool_schemas=[SCHEMA])
    lengths = sorted(len(prompt.token_ids) for number in range(3) for prompt in roomy.iteration_prompts(number))
    early, late = (open_data(lengths[-2], **options) for options in ({"tool_schemas": [SCHEMA]}, {}))
    late.describe_tools([SCHEMA])
    for number in range(4):
        assert late.iteration_prompts(number) == early.iteration_prompts(number)


@pytest.mark.parametrize("name", ["num_validation", "num_test", "max_prompt_tokens"])
def test_bad_options_are_refused(questions, name):
    with pytest.raises(ValueError, match=rf"data\.{name} must be positive, got 0"):
        RolloutDataModule(questions, "policy", **{name: 0})


def prompts_of(folder, iteration):
    """The ids of the prompts that an iteration of a run sampled, each once, in order."""
    records = read_trajectories(folder / f"trajectories/iteration_{iteration:05d}.jsonl.zst")
    return list(dict.fromkeys(record["prompt"]["id"] for record in records))


def test_a_run_lists_its_skipped_rows_and_resumes_its_order(tmp_path, policy_folder, open_data):
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text() + '{"question": "Is 12 even?"}\n')
    options = [
        "--data.source=JsonlQuestions", f"--data.source.train={path}", "--data.unusable_rows=skip",
        "--rollout.reward=tests.small_run.EvenTokens", "--trainer.check_val_every_n_epoch=1",
        "--rollout.syntax.instructions=null",
    ]  # fmt: skip
    first = run("fit", tmp_path / "first", policy_folder, "--trainer.max_epochs=2", *options)
    (skipped,) = [json.loads(line) for line in (first / "skipped_rows_train.jsonl").read_text().splitlines()]
    assert (skipped["row"], skipped["reason"]) == (13, "no_answer")
    assert not (first / "contaminated_rows.jsonl").exists()
    second = run(
        "fit", tmp_path / "second", policy_folder, "--trainer.max_epochs=4", *options,
        "--data.prompts_per_iteration=2", f"--ckpt_path={first / 'checkpoints/last.ckpt'}",
    )  # fmt: skip
    whole = open_data(unusable_rows="skip")
    assert [prompts_of(first, number) for number in range(2)] == [ids(whole, number) for number in range(2)]
    assert prompts_of(second, 2) + prompts_of(second, 3) == ids(whole, 2)
