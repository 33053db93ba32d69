"""Where the parts of a sharded policy are."""

from __future__ import annotations

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from appo.distributed.fsdp import FSDP2Strategy, amend
from tests.distributed.processes import as_processes


def move_to_another_device(rank: int) -> None:
    module = L.LightningModule()
    module.policy = nn.Linear(4, 4)
    module.register_buffer("steps", torch.zeros(1))
    fully_shard(module.policy, mesh=init_device_mesh("cpu", (1,)))
    strategy = FSDP2Strategy()
    strategy.connect(module)
    strategy.cluster_environment = LightningEnvironment()
    strategy.parallel_devices = [torch.device("meta")]
    amend(strategy)
    strategy.model_to_device()
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}
    assert module.steps.device.type == module.device.type == "meta"
    assert module.policy(torch.ones(1, 4)).isfinite().all()


def test_shards_that_rest_on_the_cpu_stay_there_when_the_rest_is_moved(tmp_path):
    as_processes(move_to_another_device, tmp_path, num=1)
