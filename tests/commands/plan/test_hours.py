from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from appo.commands import cli
from appo.commands.plan.devices import DECODING_SHARE, DEVICES, PREFILL_SHARE, STEP_S
from appo.commands.plan.probe import Probe
from appo.commands.plan.settings import EngineSettings, RunSettings
from appo.commands.plan.size import PolicySize
from appo.commands.plan.time import Lengths, Workload, plan_time
from appo.monitoring.trajectory_files import read_trajectories
from tests.small_run import CONFIG, SMALL, run

SIZE = PolicySize(10**9, 10**7, 10**7, 20, 1024, 4096, 16, 8, 64, 50_000, head_is_tied=True)
RUN = RunSettings(engine=EngineSettings("server"))
WORK = Workload(16, 4, 0, 1, 1, 1, 1, False, Lengths(prompt=200.0, sampled=300.0, tools=100.0, longest=300.0))
H100 = DEVICES["H100"]


def row(text: str, name: str) -> float:
    lines = text.partition("seconds of an iteration")[2].splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return float(line.removeprefix(name))


def test_trajectories_of_one_length_are_sampled_in_as_many_steps():
    seconds = plan_time(SIZE, RUN, WORK, H100, None)
    context = 200.0 + 400.0 / 2.0
    read = 2.0 * 10**9 + 64 * context * 2 * 20 * 8 * 64 * 2
    step_s = max(read / (DECODING_SHARE * H100.bandwidth), 2e9 * 64 / (PREFILL_SHARE * H100.flops)) + STEP_S
    read_tokens = 16 * 200 + 64 * 100
    prefill_s = read_tokens * (2e9 + 4 * 20 * 1024 * 300) / (PREFILL_SHARE * H100.flops)
    assert seconds.seconds["sampling"] == pytest.approx(300 * step_s + prefill_s)
    assert seconds.tokens == 64 * 300


def test_long_tails_and_small_engines_make_sampling_longer():
    ragged = replace(WORK, lengths=replace(WORK.lengths, longest=1500.0))
    times = [plan_time(SIZE, RUN, work, H100, slots) for work, slots in ((WORK, None), (ragged, None), (WORK, 16))]
    even, tail, waves = (each.seconds["sampling"] for each in times)
    assert 3.0 * even < tail < 5.0 * even
    assert 2.0 * even < waves < 4.1 * even
    # Three of four waves have a full batch.
    assert times[2].tail_s == pytest.approx(waves / 4, rel=0.05)


def test_work_is_divided_by_gpus_and_grows_with_what_is_trained():
    one, four = (plan_time(SIZE, replace(RUN, num_gpus=num), WORK, H100, None).seconds for num in (1, 4))
    assert one["update"] == pytest.approx(4.0 * four["update"])
    assert one["update"] == pytest.approx(3.0 * one["log-probs"])
    with_branches = plan_time(SIZE, RUN, replace(WORK, branches=4, trains_branches=True), H100, None)
    assert with_branches.seconds["update"] / one["update"] == pytest.approx((200 + 4 * 400 + 2 * 400) / (200 + 4 * 400))
    checkpointing = plan_time(SIZE, replace(RUN, checkpointing=True), WORK, H100, None)
    assert checkpointing.seconds["update"] == pytest.approx(one["update"] * 4.0 / 3.0)


@pytest.fixture(scope="module")
def probe(tmp_path_factory, policy_folder) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    return run("fit", folder, policy_folder, "--trainer.max_epochs=3", "--rollout.reward=tests.small_run.EvenTokens")


def plan(capsys, policy: Path, *options: str) -> str:
    args = ["plan", "--config", CONFIG, *SMALL, f"--model.policy={policy}", "--hours=true", "--gpu=cpu"]
    cli.run([*args, *options])
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_probe_is_planned_to_take_what_it_took(capsys, policy_folder, probe):
    text = plan(capsys, policy_folder, f"--probe={probe}", "--trainer.max_epochs=1000", "--price=2")
    with next(probe.glob("csv/version_*/metrics.csv")).open() as file:
        kept = list(csv.DictReader(file))[1:]
    totals = sorted(float(each["rollout/iteration_s"]) for each in kept)
    assert row(text, "all  ") == pytest.approx(totals[1], abs=0.02)
    assert row(text, "update") == pytest.approx(max(float(each["rollout/update_s"]) for each in kept), abs=0.01)
    assert f"hours: {totals[1] / 3.6:.2f} for 1,000 iterations, {2 * totals[1] / 3.6:.2f} at 2 a GPU hour" in text
    records = list(read_trajectories(max(probe.glob("trajectories/iteration_*"))))
    roots = [each for each in records if each["parent_id"] is None]
    lengths = Probe.of(probe).lengths
    assert lengths.prompt == pytest.approx(sum(len(each["prompt"]["token_ids"]) for each in roots) / len(roots))
    assert lengths.longest == max(sum(each["response_mask"]) for each in roots)
    assert 0.0 < lengths.branch_share < 1.0


@pytest.mark.slow
def test_of_another_policy_a_probe_says_the_lengths_alone(capsys, policy_folder, probe):
    text = plan(capsys, policy_folder, f"--probe={probe}", "--shape=Qwen2.5-7B", "--gpu=H100")
    assert "an estimate by the roofline" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "hours must be planned with lengths or a probe, got neither"),
        (("--probe=nowhere",), "probe must be the folder of a run of appo fit"),
        (("--gpu=H1000", "--probe=nowhere"), "gpu must be one of A100"),
        (
            ("--lengths.prompt=1", "--lengths.sampled=9", "--lengths.tools=0", "--lengths.longest=3"),
            "the mean of 9",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(capsys, policy_folder, options, said):
    with pytest.raises(SystemExit):
        plan(capsys, policy_folder, *options)
    assert said in capsys.readouterr().err
