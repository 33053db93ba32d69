"""Supervised fine-tuning on two processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.whole_runs import ROOT, TENSOR_PARALLEL, FinishedRun, difference, started

pytestmark = pytest.mark.distributed

OPTIONS = [
    "--data.source.demonstrations.problems.num_train=48",
    "--data.source.demonstrations.problems.num_validation=8",
    "--data.batch_size=4",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.gradient_clip_val=0.5",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--model.fresh=null",
    "--model.lr=0.005",
    "--model.warmup_steps=2",
    "--model.gradient_checkpointing=true",
]


def tune(folder: Path, policy: Path, *strategy: str) -> FinishedRun:
    """Runs a fine-tuning on two processes, which leaves its policy in ``policy/``."""
    return started(
        [
            "sft", "--config", str(ROOT / "configs/sft.yaml"), *OPTIONS, f"--model.policy={policy}",
            f"--model.save_to={folder / 'policy'}", f"--trainer.default_root_dir={folder}", "--trainer.devices=2",
            *strategy,
        ],
        2,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_shards_learn_what_whole_policies_learn(tmp_path, policy_folder, precision):
    for strategy in ("ddp", "fsdp2"):
        done = tune(
            tmp_path / strategy, policy_folder, f"--trainer.strategy={strategy}", f"--trainer.precision={precision}"
        )
        assert done.returncode == 0, done.stderr[-3000:]
    moved = difference(tmp_path / "ddp/policy", policy_folder)
    assert moved > 1e-3
    assert difference(tmp_path / "fsdp2/policy", tmp_path / "ddp/policy") < (1e-5 if precision == "32-true" else moved)


def test_a_tensor_parallel_group_is_refused(tmp_path, policy_folder):
    done = tune(tmp_path, policy_folder, *TENSOR_PARALLEL)
    assert done.returncode != 0
    assert "trainer.strategy must be ddp or fsdp2 in appo sft, got tensor_parallel_size = 2" in done.stderr
