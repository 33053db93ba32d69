"""What exists of vLLM between the start and the stop of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from appo.engines.base import Completion, Request
from appo.engines.request_tracker import RequestTracker
from appo.engines.vllm.core import pack, pack_experts, unpack
from appo.engines.vllm.tp_sync import SynchronizedSteps
from appo.engines.vllm_server.weight_files import WeightFolder
from appo.policy.weight_layout import WeightLayout


@dataclass(eq=False)
class VLLMSession:
    """A vLLM engine that was started, and how requests, weights and memory come and go."""

    core: Any
    layout: WeightLayout
    tracker: RequestTracker
    end_ids: tuple[int, ...]
    owns_process_group: bool
    loads_in_place: bool
    """Whether vLLM's model computes with the very tensors that it loaded, or with copies that are made of them here."""
    packs: bool
    """Whether such copies are made: packed ones."""
    folder: WeightFolder | None
    """Through which weights reach processes that vLLM has started to hold a part of them each; None without any."""
    steps: SynchronizedSteps | None
    """With the processes of the training that hold the other parts; None where this one has a whole engine."""
    asleep: set[str] = field(default_factory=set)
    """Parts of vLLM's memory that are given back at present."""

    def add(self, key: str, request: Request) -> None:
        """Hands a request to vLLM under a name."""
        self.wake("weights", "kv_cache")
        prompt = {"prompt_token_ids": list(request.token_ids)}
        self.core.add_request(key, prompt, _sampling_params(request, self.end_ids))

    def step(self) -> list[Completion]:
        """One step of an engine that this process has alone."""
        return [_completion(output, self.tracker) for output in self.core.step() if output.finished]

    def step_together(self, steps: SynchronizedSteps, is_done: bool) -> tuple[list[Completion], bool]:
        """One step of an engine that spans processes; returns what this one waited for, and whether all have all."""
        requests, are_done = steps.exchange(is_done)
        for named in requests:
            self.add(named.key, named.request)
        if not self.core.has_unfinished_requests():
            return [], are_done
        ended = [output for output in self.core.step() if output.finished]
        return [_completion(output, self.tracker) for output in ended if steps.is_own(output.request_id)], False

    def load(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Copies weights over those of vLLM's model, one by one."""
        if self.folder is not None:
            path = self.folder.write(tensors, version)
            self.core.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
            self.folder.keep_only(path)
        elif self.loads_in_place:
            if self.packs:
                self.core.apply_model(unpack)  # makes room: the copies are of no use any more
            self.core.apply_model(lambda model: len(model.load_weights(tensors)))
            self.core.apply_model(pack_experts)
            self.pack()
        else:
            self.core.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})

    def pack(self) -> None:
        """Makes the packed copies of the weights anew, if the model computes with such."""
        if self.packs:
            self.core.apply_model(pack)

    def sleep(self, drops_weights: bool) -> None:
        """Gives the memory back if vLLM was started such that it can, and is awake."""
        if self.core.model_config.enable_sleep_mode and not self.asleep:
            # An update brings parameters, and vLLM holds as parameters what others have in buffers.
            drops_weights = drops_weights and not self.layout.has_buffers
            self.core.sleep(level=2 if drops_weights else 1)
            self.asleep = {"weights", "kv_cache"}
            if drops_weights:
                self.tracker.has_weights = False

    def wake(self, *parts: str) -> None:
        """Takes back the memory of some parts; weights that were dropped are not in it until they are loaded."""
        tags = [part for part in parts if part in self.asleep]
        if tags:
            self.core.wake_up(tags)
            self.asleep.difference_update(tags)


def _sampling_params(request: Request, end_ids: tuple[int, ...]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        top_k=request.sampling.top_k,
        seed=request.seed % 2**63,
        max_tokens=request.max_tokens,
        stop=list(request.stop),
        stop_token_ids=list(end_ids),
        detokenize=bool(request.stop),
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def _completion(output: Any, tracker: RequestTracker) -> Completion:
    request = tracker.in_flight.pop(int(output.request_id.rpartition(":")[2]))
    sampled = output.outputs[0]
    if sampled.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended request {request.id} with {sampled.finish_reason!r}")
    stop_string = sampled.stop_reason if isinstance(sampled.stop_reason, str) else None
    log_probs = sampled.logprobs
    return Completion(
        id=request.id,
        token_ids=tuple(sampled.token_ids),
        behavior_log_probs=tuple(log_probs.logprobs[start] for start in log_probs.start_indices),
        finish_reason="length" if sampled.finish_reason == "length" else "stop" if stop_string else "eos",
        stop_string=stop_string,
        cached_tokens=output.num_cached_tokens or 0,
        policy_version=tracker.version,
    )
