"""Small hand-made batches, and a tiny policy with a run of it, shared by the tests."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from appo.core.batch import NO_PARENT, TrajectoryBatch
from appo.core.collate import make_batch
from appo.sft import TinyPolicy, WorldConversations
from appo.tools.python.attacks.attack import SETTINGS
from appo.tools.python.sandbox.settings import Wall
from tests.engines.vllm_installed import skip_without_vllm, takes_gpus
from tests.marks import all_marks, hide_gpus, reason_to_skip
from tests.small_run import run
from tests.tools.python.own_walls import gives

_LONG = {"slow", "vllm", "distributed"}
"""Marks of tests that take seconds."""


@pytest.fixture(scope="session")
def walls() -> Collection[Wall]:
    """What this machine gives to keep code from it."""
    walls: tuple[Wall, ...] = ("namespaces", "landlock")
    return [*(wall for wall in walls if gives(replace(SETTINGS, wall=wall))), "limits"]


def pytest_configure(config: pytest.Config) -> None:
    hide_gpus(config.option.markexpr)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs a running vLLM server, or a GPU for vLLM, before marks decide what is run; and orders files."""
    for item in items:
        if "served_llama" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.vllm)
        present = {mark.name for mark in item.iter_markers()}
        for name in all_marks(present, vllm_takes_gpus=takes_gpus()) - present:
            item.add_marker(name)
    # Files that take long come first, so that processes which share the tests end at the same time.
    long = {item.path for item in items if {mark.name for mark in item.iter_markers()} & _LONG}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves out tests with vLLM where it is not installed, and those of a GPU where there is none."""
    if reason := reason_to_skip({mark.name for mark in item.iter_markers()}):
        pytest.skip(reason)
    if item.get_closest_marker("vllm"):
        skip_without_vllm()


@pytest.fixture
def batch() -> TrajectoryBatch:
    """Two prompts with two initial trajectories each, and one branch of row 0 and one of row 2.

    Position 0 is the prompt; row 1 stops early, row 3 has tool output at position 2.
    """
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor(
        [
            [0, 1, 1, 1, 1, 1],
            [0, 1, 1, 0, 0, 0],
            [0, 1, 1, 1, 1, 0],
            [0, 1, 0, 1, 1, 1],
            [0, 1, 1, 1, 0, 0],
            [0, 1, 1, 1, 1, 1],
        ],
        dtype=torch.bool,
    )
    log_probs = -torch.rand(6, 6, generator=generator) * mask
    return make_batch(
        token_ids=torch.arange(36).reshape(6, 6) * (mask | (torch.arange(6) < 3)),
        lengths=torch.tensor([6, 3, 5, 6, 4, 6]),
        response_mask=mask,
        behavior_log_probs=log_probs,
        old_log_probs=log_probs + 0.1 * torch.randn(6, 6, generator=generator) * mask,
        entropies=torch.rand(6, 6, generator=generator) * mask,
        rewards=torch.tensor([1.0, 0.0, 1.0, 0.25, 0.5, -1.0]),
        group=torch.tensor([0, 0, 1, 1, 0, 1]),
        parent=torch.tensor([NO_PARENT, NO_PARENT, NO_PARENT, NO_PARENT, 0, 2]),
        branch_position=torch.tensor([NO_PARENT, NO_PARENT, NO_PARENT, NO_PARENT, 2, 4]),
        branch_score=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.7, 0.2]),
    )


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory) -> Path:
    """An untrained tiny policy."""
    folder = tmp_path_factory.mktemp("policy")
    TinyPolicy(WorldConversations(), hidden_size=64, num_layers=1, num_heads=2, mlp_size=64).build(folder)
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, policy_folder) -> Path:
    """The folder of a fit of one iteration."""
    folder = tmp_path_factory.mktemp("run")
    return run("fit", folder, policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens")


@pytest.fixture(scope="session")
def adapted_run(tmp_path_factory, policy_folder) -> Path:
    """The folder of a fit of two iterations that trained an adapter."""
    pytest.importorskip("peft")
    return run(
        "fit", tmp_path_factory.mktemp("adapted"), policy_folder, "--trainer.max_epochs=2",
        "--rollout.reward=tests.small_run.EvenTokens", "--model.lora.rank=4", "--model.optimizer.lr=0.02",
        "--model.loss.kl_coef=0.1",
    )  # fmt: skip
