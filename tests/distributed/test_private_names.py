"""What is used of torch and Lightning that they do not promise to keep: a failure here names what has moved."""

from __future__ import annotations

from importlib import import_module
from inspect import signature

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.tensor.placement_types import _StridedShard

from appo.distributed.foreign_checkpoint import _INDEX_CLASSES


def test_the_timeout_of_a_process_group_can_be_set():
    assert list(signature(_set_pg_timeout).parameters) == ["timeout", "group"]


def test_a_dimension_that_was_cut_twice_says_so():
    assert _StridedShard(0, split_factor=4).split_factor == 4


def test_advice_on_redistribution_comes_from_a_logger_of_that_name():
    assert (
        import_module("torch.distributed.tensor._redistribute").logger.name == "torch.distributed.tensor._redistribute"
    )


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in _INDEX_CLASSES.items() for name in names]
)
def test_an_index_of_shards_consists_of_known_classes(module, name):
    assert hasattr(import_module(module), name), f"{module}.{name}"


def test_values_of_shards_pass_the_planner():
    assert list(signature(DefaultLoadPlanner.load_bytes).parameters) == ["self", "read_item", "value"]


def test_lightning_keeps_sizes_and_device_where_they_are_set():
    assert ModelParallelStrategy(data_parallel_size=3, tensor_parallel_size=1)._data_parallel_size == 3
    assert LightningModule()._device == torch.device("cpu")


def test_a_module_hands_each_tensor_to_a_function():
    network = torch.nn.Linear(2, 2)
    network._apply(lambda tensor: tensor + 1.0 if tensor.ndim == 1 else tensor)
    assert network.bias.min() > 0.0


def test_a_checkpoint_callback_knows_when_it_saves_and_what_it_saved_last():
    callback = ModelCheckpoint()
    assert (callback._save_on_train_epoch_end, callback._last_global_step_saved) == (None, 0)
