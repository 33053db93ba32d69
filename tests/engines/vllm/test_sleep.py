"""How deep an engine on a GPU sleeps, and what it takes back when; no CPU can sleep, so vLLM is recorded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from appo.engines import Request, VLLMEngine
from appo.engines.request_tracker import RequestTracker
from appo.engines.vllm.session import VLLMSession
from appo.policy.weight_layout import WeightLayout

pytestmark = pytest.mark.vllm


class RecordedCore:
    """The calls of vLLM's engine that sleep, updates and requests come down to."""

    def __init__(self, can_sleep: bool) -> None:
        self.model_config = SimpleNamespace(enable_sleep_mode=can_sleep)
        self.calls: list[str] = []

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {' and '.join(tags)}")

    def collective_rpc(self, method: str, kwargs: dict) -> None:
        self.calls.append(f"{method} of {len(list(kwargs['weights_iterator']))}")

    def reset_prefix_cache(self) -> bool:
        return True

    def add_request(self, key: str, prompt: object, params: object) -> None:
        self.calls.append(f"request {key}")


def started_engine(policy, level: int, can_sleep: bool = True) -> tuple[VLLMEngine, list[str]]:
    engine, core = VLLMEngine(sleep_level=level), RecordedCore(can_sleep)
    layout, tracker = WeightLayout.of_policy(str(policy)), RequestTracker(64, 64)
    engine._session = VLLMSession(core, layout, tracker, (1,), False, False, False, None, None)
    return engine, core.calls


def weights(engine: VLLMEngine) -> list:
    assert engine._session is not None
    return list(engine._session.layout.model.named_parameters())


@pytest.mark.parametrize(("level", "weights_follow", "depth"), [(2, True, 2), (2, False, 1), (1, True, 1)])
def test_an_engine_drops_its_weights_only_where_new_ones_follow(policy_folder, level, weights_follow, depth):
    engine, calls = started_engine(policy_folder, level)
    engine.sleep(weights_follow)
    engine.sleep(weights_follow)
    assert calls == [f"sleep {depth}"]
    assert engine.has_weights == (depth == 1)
    if depth == 2:
        with pytest.raises(RuntimeError, match="or they were dropped while asleep"):
            engine.submit(Request(0, (5,), max_tokens=1))
    # Memory of the cache comes back no earlier than it is needed: the trainer gathers weights until then.
    engine.update_weights(weights(engine), 0 if depth == 2 else 1)
    engine.submit(Request(1, (5,), max_tokens=1))
    assert calls[1:] == ["wake weights", calls[2], "wake kv_cache", "request 1"]
    assert calls[2].startswith("reload_weights of ")
    assert engine.has_weights


def test_an_engine_that_kept_its_weights_wakes_with_them(policy_folder):
    engine, calls = started_engine(policy_folder, 2)
    engine.sleep()
    engine.submit(Request(0, (5,), max_tokens=1))
    assert calls == ["sleep 1", "wake weights and kv_cache", "request 0"]


def test_weights_of_which_an_update_brings_a_part_are_kept(policy_folder):
    engine, calls = started_engine(policy_folder, 2)
    assert engine._session is not None
    engine._session.layout.model.register_buffer("bias_of_a_router", torch.zeros(2))
    engine.sleep(weights_follow=True)
    assert calls == ["sleep 1"]
    assert engine.has_weights


def test_sleep_does_not_make_whole_what_an_update_has_broken(policy_folder):
    engine, _ = started_engine(policy_folder, 2)
    with pytest.raises(ValueError, match="missing"):
        engine.update_weights(weights(engine)[:3], 1)
    engine.sleep()
    assert not engine.has_weights


def test_an_engine_that_cannot_sleep_stays_as_it_is(policy_folder):
    engine, calls = started_engine(policy_folder, 0, can_sleep=False)
    engine.sleep(weights_follow=True)
    assert calls == []
    assert engine.has_weights


def test_other_levels_are_refused():
    with pytest.raises(ValueError, match="sleep_level must be 0, 1 or 2, got 3"):
        VLLMEngine(sleep_level=3)
