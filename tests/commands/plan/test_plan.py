from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from appo.commands.plan.advice import advice, gpus_needed
from appo.commands.plan.command import describe
from appo.commands.plan.memory import cache_bytes
from appo.commands.plan.plan import PHASES, MemoryPlan, plan_memory
from appo.commands.plan.settings import GIB, EngineSettings, Precision, RunSettings
from appo.commands.plan.shapes import SHAPES
from appo.commands.plan.size import PolicySize

SIZE = PolicySize.of_config(AutoConfig.for_model(**SHAPES["Qwen2.5-7B"]))
SHARDED = RunSettings(
    num_gpus=8,
    strategy="fsdp",
    precision=Precision(4, 2, 2),
    checkpointing=True,
    engine=EngineSettings("vllm"),
)


def item(plan: MemoryPlan, name: str) -> int:
    (found,) = (item for item in plan.items if item.name == name)
    return found.num_bytes


def test_shards_divide_what_every_process_holds_without_them():
    sharded, whole = plan_memory(SIZE, SHARDED), plan_memory(SIZE, replace(SHARDED, strategy="ddp"))
    for name in ("weights", "optimizer state"):
        assert item(sharded, name) == item(whole, name) // 8
    assert item(whole, "weights") == 4 * SIZE.num_weights
    assert item(whole, "optimizer state") == 2 * 4 * SIZE.num_weights
    # In the buckets of DDP they are held once more.
    assert item(whole, "gradients") == 2 * item(whole, "weights")
    assert item(sharded, "gradients") == item(sharded, "weights")


def test_phases_add_up_what_is_there_in_them():
    plan = plan_memory(SIZE, SHARDED)
    for phase in PHASES:
        assert plan.total(phase) == sum(item.num_bytes for item in plan.items if phase in item.phases)
    assert plan.peak == max(plan.total(phase) for phase in PHASES)


def test_processes_that_compute_layers_together_gather_a_part_of_each_and_the_rest_whole():
    together = replace(SHARDED, tensor_parallel=4)
    alone_plan, plan = plan_memory(SIZE, SHARDED), plan_memory(SIZE, together)
    whole = SIZE.vocabulary_weights
    for each, layers in ((alone_plan, 2 * SIZE.layer_weights), (plan, 2 * SIZE.layer_weights // 4)):
        assert item(each, "unsharded layers") == 2 * (layers + whole)
        assert item(each, "gradients of unsharded layers") == 2 * (layers + SIZE.lm_head_weights)
    for name in ("weights", "optimizer state", "gradients", "weights on their way to the engine"):
        assert item(plan, name) == item(alone_plan, name)
    # Both have the same rows, and put some of them through the head each.
    assert (together.step_tokens, together.step_scored) == (16384, 4096)
    assert replace(together, scored_tokens=10).step_scored == 3


def test_weights_are_gathered_whole_on_their_way_to_an_engine_as_they_are_stored():
    largest = max(SIZE.layer_weights, SIZE.lm_head_weights)
    assert item(plan_memory(SIZE, SHARDED), "weights on their way to the engine") == 4 * largest + 64 * 2**20


def test_autocast_casts_what_was_gathered():
    gathered_low = plan_memory(SIZE, SHARDED)
    cast = plan_memory(SIZE, replace(SHARDED, precision=Precision(4, 2, 4), tensor_parallel=4))
    assert item(gathered_low, "casts of weights") == 0
    layers = 2 * SIZE.layer_weights // 4
    assert item(cast, "unsharded layers") == 4 * (layers + SIZE.vocabulary_weights)
    matrices = SIZE.num_layers * SIZE.linear_layer_weights // 4 + SIZE.lm_head_weights
    assert item(cast, "casts of weights") == 2 * matrices


def test_an_engine_that_sleeps_leaves_its_memory_to_the_update():
    asleep = plan_memory(SIZE, SHARDED)
    awake = plan_memory(SIZE, replace(SHARDED, engine=replace(SHARDED.engine, sleeps=False)))
    share = int(0.5 * 80 * GIB)
    assert awake.total("update") - asleep.total("update") == share
    assert awake.total("sampling") == asleep.total("sampling")
    # It is awake while log-probs are taken: branches are sampled next.
    assert awake.total("log-probs") == asleep.total("log-probs") > share


def test_the_cache_of_an_engine_is_what_its_share_leaves():
    plan = plan_memory(SIZE, SHARDED)
    engine = sum(item.num_bytes for item in plan.items if item.name.startswith("engine"))
    assert engine == int(0.5 * 80 * GIB)
    assert plan.cache_tokens == item(plan, "engine: key-value cache") // cache_bytes(SIZE, 2)
    assert plan.cache_trajectories == plan.cache_tokens // 4096


def test_servers_take_nothing_of_the_trainers_gpus():
    plan = plan_memory(SIZE, replace(SHARDED, engine=EngineSettings("server")))
    assert not any(item.name.startswith("engine") for item in plan.items)
    assert plan.cache_tokens is None
    assert plan.fits


def test_advice_makes_a_run_fit():
    run = replace(SHARDED, strategy="ddp", checkpointing=False)
    assert not plan_memory(SIZE, run).fits
    assert advice(SIZE, run) == ["model.gradient_checkpointing=true", "trainer.strategy=fsdp2"]
    assert plan_memory(SIZE, replace(run, checkpointing=True, strategy="fsdp")).fits
    assert not plan_memory(SIZE, replace(run, strategy="fsdp")).fits


def test_nothing_is_advised_where_a_run_fits():
    assert advice(SIZE, SHARDED) == []


def test_an_engine_without_room_for_a_trajectory_does_not_fit():
    run = replace(SHARDED, engine=replace(SHARDED.engine, memory_share=0.2))
    plan = plan_memory(SIZE, run)
    assert plan.cache_trajectories == 0
    assert not plan.fits
    (text,) = advice(SIZE, run)
    assert text.startswith("rollout.engine.gpu_memory_utilization=")


def test_what_fits_on_no_change_is_told_how_many_gpus_it_needs():
    size = PolicySize.of_config(AutoConfig.for_model(**SHAPES["Llama-3.1-70B"]))
    run = replace(SHARDED, engine=EngineSettings("vllm", tensor_parallel=8, memory_share=0.4))
    assert advice(size, run) is None
    number, changes = gpus_needed(size, run)
    assert number in (16, 32)
    assert advice(size, replace(run, num_gpus=number)) == changes
    assert advice(size, replace(run, num_gpus=number // 2)) is None


def test_more_gpus_do_not_change_how_many_compute_a_layer():
    size = PolicySize.of_config(AutoConfig.for_model(**SHAPES["Llama-3.1-70B"]))
    run = replace(SHARDED, tensor_parallel=8, engine=EngineSettings("vllm", tensor_parallel=8, memory_share=0.4))
    text = describe(plan_memory(size, run))
    assert ", 8 GPUs a layer" in text
    assert "fits on 32 GPUs with data_parallel_size=4" in text
    assert "fsdp2 on" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_gpus": 0}, "gpus must be positive, got 0"),
        ({"gpu_bytes": 0}, r"gpu_memory_gib must be positive, got 0\.0"),
        ({"tensor_parallel": 3}, "must divide 8 GPUs, got 3"),
        ({"tensor_parallel": 2, "strategy": "ddp"}, "tensor_parallel_size must be 1 without shards, got 2"),
        ({"engine": EngineSettings("vllm", tensor_parallel=16)}, "must divide 8 GPUs, got 16"),
    ],
)
def test_impossible_runs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SHARDED, **changes)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured by Linux")
@pytest.mark.parametrize("strategy", ["single", pytest.param("tensor", marks=pytest.mark.distributed)])
def test_the_peak_of_real_optimizer_steps_is_met_within_15_percent(strategy):
    from benchmarks.memory_plan import Case, measure, predict

    case = Case("llama-small", rows=4, row_tokens=256, scored=32, strategy=strategy)
    assert predict(case) == pytest.approx(measure(case), rel=0.15)
