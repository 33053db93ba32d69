"""What sampling takes: engine, tools, rewards and the agent that uses them, started and stopped together."""

from __future__ import annotations

import logging
from copy import deepcopy
from functools import partial

from lightning.pytorch.profilers import Profiler

from appo.distributed import comm
from appo.engines import Engine
from appo.policy.text import encode
from appo.prompts import ToolInstructions
from appo.rewards import RewardRunner
from appo.rollouts import (
    Agent,
    AgentLoop,
    AsyncAgent,
    Limits,
    Mismatch,
    PhaseTimer,
    WeightProbe,
    WeightSync,
    default_tolerance,
)
from appo.rollouts.inert_text import inert_schemas
from appo.tools import CallSyntax, ToolRunner
from appo.training.argument_types import AnyReward, AnyTools
from appo.training.checks import can_overlap, check_columns
from appo.training.datamodule import RolloutDataModule
from appo.training.module import APPOModule
from appo.training.options import RewardOptions, SamplingOptions
from appo.training.tool_checks import check_token_ids, check_tools, warn_of_endless_turns, warn_of_unnamed_tools

log = logging.getLogger(__name__)

_PROBE_TEXT = "The weights that sample must be the weights that are trained: 3 + 4 = 7."

_PROBE_TOKENS = 16

_FIRST_PROMPTS = 16
"""Of each split, in which tools must be named."""


class Sampler:
    """Samples and rewards trajectories for training and evaluation alike.

    Args:
        engine: samples continuations.
        tools: what the agent may call.
        syntax: how calls and results are written.
        reward: what a trajectory is worth.
        sampling: how trajectories are sampled, and how far ahead of their training.
        limits: what one trajectory may use.
        rewards: how rewards are computed.
    """

    def __init__(
        self,
        engine: Engine,
        tools: AnyTools,
        syntax: CallSyntax,
        reward: AnyReward,
        sampling: SamplingOptions,
        limits: Limits,
        rewards: RewardOptions,
    ) -> None:
        self.engine = engine
        self.tools = ToolRunner(tools, max_parallel=limits.max_parallel_tools, attempts=limits.tool_attempts)
        self.syntax = syntax
        self.reward = RewardRunner(reward, rewards.workers, rewards.timeout_s, rewards.on_failure)
        self.sampling = sampling
        self.limits = limits
        overlap = False if sampling.deterministic else sampling.overlap
        self.overlaps = can_overlap(overlap, sampling.lag, engine)
        self.timer = PhaseTimer()
        self._agent: Agent | None = None
        self._sync: WeightSync | None = None
        self._met = Mismatch()

    @property
    def agent(self) -> Agent:
        """Samples trajectories, once it is started."""
        assert self._agent is not None
        return self._agent

    @property
    def worst_mismatch(self) -> Mismatch:
        """Of log-probs of engine and trainer after an update of the weights, the worst so far."""
        return self._met if self._sync is None else self._sync.worst

    def met(self, mismatch: Mismatch) -> None:
        """Takes up what a run has met before it was resumed."""
        self._met = mismatch

    def start(self, module: APPOModule, data: RolloutDataModule, profiler: Profiler | None, trains: bool) -> None:
        """Starts everything.

        Args:
            module: with the policy that the engine samples from.
            data: its tokenizer, and the prompts that describe tools.
            profiler: records the phases of sampling.
            trains: whether a policy is trained meanwhile.

        Raises:
            ValueError: if tools, syntax and policy do not fit.
        """
        self.reward.start()
        self.tools.start()
        self.describe_tools(data)
        warn_of_endless_turns(data.tokenizer)
        prompts = data.first_prompts(_FIRST_PROMPTS)
        check_token_ids(prompts, module.policy_folder)
        check_columns(prompts, self.reward.reward)
        warn_of_unnamed_tools(data.tokenizer, prompts, self.tools.tools)
        check_tools(data.tokenizer, self.syntax, self.tools, self.limits)
        self.engine.start(module.policy_folder)
        self._sync = None
        self.timer = PhaseTimer(profiler)
        if self.overlaps and trains:
            # Fast tokenizers refuse to serve two threads at once, and the seconds of a timer belong to one.
            loop = AgentLoop(self.engine, deepcopy(data.tokenizer), self.tools, self.syntax, self.limits)
            self._agent = AsyncAgent(loop, self.timer)
        else:
            self._agent = AgentLoop(
                self.engine,
                data.tokenizer,
                self.tools,
                self.syntax,
                self.limits,
                self.timer,
                self.sampling.deterministic,
            )

    def describe_tools(self, data: RolloutDataModule) -> None:
        """Puts what there is to say of tools into prompts; servers of tools say which they have once started."""
        if data.tool_schemas is not None:
            return
        schemas = inert_schemas(data.tokenizer, self.tools.schemas())
        if self.syntax.describes_tools:
            data.describe_tools(schemas)
            return
        told = self.syntax.describe(schemas, conversation="")
        if told and data.describe_tools([], ToolInstructions(self.syntax, schemas)):
            log.info("prompts that do not name the tools say behind the system message:\n%s", told)

    def stop(self) -> None:
        """Ends everything; what is in flight is given up. Does nothing if nothing was started."""
        if isinstance(self._agent, AsyncAgent):
            self._agent.stop()
        self.engine.stop()
        self.tools.stop()
        self.reward.stop()

    def check(self) -> None:
        """Raises what has ended sampling beside the training, if anything has."""
        if isinstance(self._agent, AsyncAgent):
            self._agent.check()

    def sync_weights(self, module: APPOModule, data: RolloutDataModule) -> None:
        """Brings the engine to the policy's version, and makes sure that it arrived there; nothing may be in flight."""
        if self._sync is None:
            text = tuple(encode(data.tokenizer, _PROBE_TEXT))[:_PROBE_TOKENS]
            probe = WeightProbe(self.engine, module.evaluate, text, self.sampling.temperature)
            tolerance = self.sampling.max_mismatch or default_tolerance(self.engine, module.compute_dtype)
            weights = partial(module.named_weights, self.engine.weight_dtype)
            self._sync = WeightSync(self.engine, weights, probe, tolerance, self._met)
        with self.timer("weights"), comm.phase("weights"):
            self._sync(module.policy_version)
