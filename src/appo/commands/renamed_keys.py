"""Options that have another name now, or none."""

from __future__ import annotations

_SECTIONS = {
    "branching": ("num_trajectories", "selection", "split", "fallback", "repeat", "exclude"),
    "sampling": ("temperature", "lag", "overlap", "replacement_rounds", "max_mismatch", "deterministic"),
    "limits": ("max_response_tokens", "max_tool_calls", "max_result_tokens", "max_parallel_tools", "tool_attempts"),
}
_RENAMED = {
    "num_initial": "branching.num_roots",
    "branch_when": "branching.when",
    "branch_tool_calls": "branching.tool_calls",
    "tool_rules": "limits",
    "tool_rules.max_calls_per_tool": "limits.max_calls_per_tool",
    "tool_rules.at_limit": "limits.at_tool_limit",
    "tool_rules.max_refusals": "limits.max_refusals",
    "tool_rules.repeated_calls": "limits.repeated_calls",
    "reward_workers": "rewards.workers",
    "reward_timeout_s": "rewards.timeout_s",
    "on_reward_failure": "rewards.on_failure",
    "evaluation_samples": "evaluation.samples",
    "evaluation_temperature": "evaluation.temperature",
}

RENAMED_KEYS = {
    **{f"rollout.{name}": f"rollout.{section}.{name}" for section, names in _SECTIONS.items() for name in names},
    **{f"rollout.{old}": f"rollout.{new}" for old, new in _RENAMED.items()},
}
"""The present name of every option that was named otherwise, by its former name."""

_WHOLE = (
    "training samples from the whole distribution, which the loss computes log-probs of; evaluations may cut it by "
    "rollout.evaluation.top_p and rollout.evaluation.top_k"
)
_VERSIONS = (
    "versions of the policy decide where the likelihood gain counts: a trajectory that the policy has sampled as it is "
    "now is scored by entropy alone"
)
_HALF_LIFE = (
    "rollout.scorer.half_life says after how many tokens a log-ratio counts half, -1 / log2(discount); null stands for "
    "a discount of 1"
)
_SHARE = "rollout.branching.min_remaining is a share of rollout.limits.max_response_tokens"
REMOVED_KEYS = {
    **{f"rollout.{section}{name}": _WHOLE for section in ("", "sampling.") for name in ("top_p", "top_k")},
    **{f"rollout.scorer.{name}": _VERSIONS for name in ("entropy_fallback", "min_spread")},
    "rollout.scorer.discount": _HALF_LIFE,
    **{f"rollout.{section}min_remaining_tokens": _SHARE for section in ("", "branching.")},
}
"""Why there is no such option, by the name that it had."""
