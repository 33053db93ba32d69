"""What is used of vLLM that it does not promise to keep: a failure here names what has moved."""

from __future__ import annotations

import re
from importlib import import_module
from inspect import getsource, signature
from pathlib import Path
from typing import get_args

import pytest
import torch

from appo.engines.vllm import core
from appo.engines.vllm.core import runs_on_cpu
from appo.engines.vllm_server.transfer_client import TransferClient
from appo.engines.vllm_server.weight_files import WITHOUT_HEAD
from appo.workers.loops import LoopThread

pytestmark = pytest.mark.vllm

USED = {
    "vllm.platforms": ["current_platform.is_cpu"],
    "vllm": ["EngineArgs", "LLMEngine.from_engine_args", "SamplingParams"],
    "vllm.v1.engine.llm_engine": [
        "LLMEngine.add_request",
        "LLMEngine.step",
        "LLMEngine.has_unfinished_requests",
        "LLMEngine.reset_prefix_cache",
        "LLMEngine.sleep",
        "LLMEngine.wake_up",
        "LLMEngine.collective_rpc",
        "LLMEngine.apply_model",
    ],
    "vllm.v1.engine.core_client": ["InprocClient.shutdown"],
    "vllm.v1.worker.gpu_worker": ["Worker.reload_weights"],
    "vllm.model_executor.models.transformers.base": ["Base._decorate_cls_for_torch_compile"],
    "vllm.sampling_params": ["RequestOutputKind.FINAL_ONLY"],
    "vllm.outputs": ["RequestOutput", "CompletionOutput"],
    "vllm.logprobs": ["FlatLogprobs"],
    "vllm.distributed.weight_transfer.base": ["ParamMeta", "VLLMWeightSyncClient"],
    "vllm.distributed.weight_transfer.factory": ["WeightTransferTrainerFactory.trainer_init"],
    "vllm.distributed.weight_transfer.nccl_engine": [
        "NCCLTrainerInitInfo",
        "NCCLTrainerWeightTransferEngine.send_weights",
        "NCCLTrainerWeightTransferEngine.shutdown",
    ],
    "vllm.distributed.parallel_state": [
        "get_tp_group",
        "GroupCoordinator.destroy",
        "cleanup_dist_env_and_memory",
        "destroy_distributed_environment",
    ],
}

USED_ON_CPU = {
    "vllm._custom_ops": ["_supports_onednn"],
    "vllm.model_executor.layers.utils": ["dispatch_cpu_unquantized_gemm"],
    "vllm.v1.attention.backends.cpu_attn": ["CPUAttentionBackend.get_supported_head_sizes"],
    "vllm.distributed.device_communicators.cpu_communicator": ["_CPUSHMDistributed.make_group_name"],
}


@pytest.mark.parametrize("module", [*USED, *USED_ON_CPU])
def test_what_is_used_is_there(module):
    if module in USED_ON_CPU and not runs_on_cpu():
        pytest.skip("of vLLM for CPUs")
    for path in (USED | USED_ON_CPU)[module]:
        found = import_module(module)
        for name in path.split("."):
            assert hasattr(found, name), f"{module}.{path}"
            found = getattr(found, name)


def test_the_trainer_keeps_the_threads_that_vllm_takes_for_a_gpu(monkeypatch):
    from vllm.utils.torch_utils import set_torch_threads_for_runtime

    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(3)
    try:
        with core._undisturbed(on_cpu=False):
            set_torch_threads_for_runtime()
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_arguments_are_known_by_their_names():
    from vllm import EngineArgs, SamplingParams
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    engine = {
        "model", "dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill",
        "kv_cache_memory_bytes", "gpu_memory_utilization", "block_size", "tensor_parallel_size",
        "distributed_executor_backend", "enforce_eager", "enable_sleep_mode", "enable_prefix_caching", "logprobs_mode",
        "generation_config", "disable_log_stats", "use_tqdm_on_load",
    }  # fmt: skip
    sampling = {
        "temperature", "top_p", "top_k", "seed", "max_tokens", "stop", "stop_token_ids", "detokenize",
        "skip_special_tokens", "spaces_between_special_tokens", "logprobs", "flat_logprobs", "output_kind",
        "skip_clone",
    }  # fmt: skip
    assert engine - signature(EngineArgs).parameters.keys() == set()
    assert sampling - signature(SamplingParams).parameters.keys() == set()
    assert {"weights_iterator", "weights_path"} <= signature(GPUModelRunner.reload_weights).parameters.keys()


def test_answers_have_the_fields_that_are_read():
    from vllm.logprobs import FlatLogprobs
    from vllm.outputs import CompletionOutput, RequestOutput

    assert {"outputs", "request_id", "finished", "num_cached_tokens"} <= signature(RequestOutput).parameters.keys()
    fields = signature(CompletionOutput).parameters.keys()
    assert {"token_ids", "logprobs", "finish_reason", "stop_reason"} <= fields
    assert {"logprobs", "start_indices"} <= FlatLogprobs.__annotations__.keys()


def test_groups_of_processes_are_destroyed_where_it_is_intercepted():
    from vllm.distributed import parallel_state
    from vllm.v1.engine import core

    # Its own default group goes by a function that is looked up in the module, after the groups that are its own.
    assert hasattr(parallel_state, "_WORLD")
    assert hasattr(parallel_state, "_NODE_COUNT")
    assert "destroy_distributed_environment()" in getsource(parallel_state.cleanup_dist_env_and_memory)
    assert core.cleanup_dist_env_and_memory is parallel_state.cleanup_dist_env_and_memory


def test_weights_are_sent_as_the_trainer_of_vllm_asks_for_them():
    from vllm.distributed.weight_transfer import base, nccl_engine

    given = {"rank", "master_address", "master_port", "world_size", "packed_buffer_size_bytes"}
    assert given <= signature(nccl_engine.NCCLTrainerInitInfo).parameters.keys()
    assert nccl_engine.NCCLTrainerInitInfo(0, "", 0, rank=0).packed
    assert list(signature(base.ParamMeta).parameters) == ["name", "dtype", "shape"]
    assert isinstance(TransferClient(LoopThread, [], lambda: None), base.VLLMWeightSyncClient)
    used = getsource(nccl_engine.NCCLTrainerWeightTransferEngine)
    assert set(re.findall(r"\bsource\.(\w+)", used)) == {"metadata"}
    assert "self.shutdown" not in used


def test_calls_of_servers_are_there():
    from vllm.entrypoints.rl.online.api_router import router
    from vllm.v1.engine import PauseMode

    used = {
        "/weight_info", "/update_weight_version", "/pause", "/resume", "/get_world_size",
        "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine",
        "/start_weight_update", "/update_weights", "/finish_weight_update",
    }  # fmt: skip
    assert used - {route.path for route in router.routes} == set()
    assert "abort" in get_args(PauseMode)


def test_models_without_a_head_of_their_own_are_known():
    models = Path(import_module("vllm.model_executor.models").__file__).parent
    sources = [path.read_text(encoding="utf-8") for path in models.glob("*.py")]
    reads_embeddings = [source for source in sources if "self.logits_processor(self.model.embed_tokens" in source]
    without = [source for source in reads_embeddings if "lm_head" not in source]
    assert {name for source in without for name in re.findall(r"^class (\w+ForCausalLM)", source, re.M)} == WITHOUT_HEAD
