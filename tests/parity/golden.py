"""Reads a file of golden cases, and refuses one that the tests would not check to its last value."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

FORM = {
    "": "params inputs prompt_of_row future_values branches advantage loss",
    "params": "gamma clip_eps max_branches_per_prompt rollouts_per_prompt prompts pad_token_id blank_token_ids",
    "inputs": "response_ids prompt_ids attention_mask loss_mask current_log_probs behaviour_log_probs entropies",
    "advantage": "rewards lengths kind prompt_of_row discount scaled_token_rewards advantages response_mask",
    "loss": "params log_probs old_log_probs advantages loss_mask loss grad clip_fraction approx_kl lower_clip_fraction "
    "metrics reference_log_probs kl loss_matrix aggregates",
    "loss.params": "clip_ratio clip_ratio_low clip_ratio_high clip_ratio_c loss_agg_mode chunk_size decay_rate "
    "future_kl_clip_ratio future_kl_clip_high_only future_kl_weight safety_thresh",
    "loss.metrics": "actor/fipo_iw_mean actor/fipo_iw_min actor/fipo_iw_max actor/fipo_iw_clip_total "
    "actor/fipo_iw_clip_upper actor/fipo_iw_clip_lower actor/fipo_iw_raw_mean actor/fipo_iw_raw_min "
    "actor/fipo_iw_raw_max actor/fipo_iw_weight",
    "loss.kl": "kl abs mse low_var_kl",
    "loss.aggregates": "token-mean seq-mean-token-sum seq-mean-token-mean seq-mean-token-sum-norm",
}
"""The keys of a case, by the path of the object that holds them."""
BRANCH = "row position score remaining"


def load_cases(path: Path) -> list[dict[str, Any]]:
    """The cases of a golden file.

    Raises:
        ValueError: if there are none, or one has a key that no test reads, or lacks one.
    """
    file = json.loads(path.read_text())
    cases = file.get("cases") if isinstance(file, dict) else None
    if not isinstance(cases, list) or not cases:
        raise ValueError(f"{path} must have a list of cases, got none")
    for key in sorted(set(file) - {"cases"}):
        if isinstance(file[key], list | dict):
            raise ValueError(f"{path} must hold nothing but `cases` and words about them, got {key!r}")
    for number, case in enumerate(cases):
        for where, keys in FORM.items():
            # Objects come before those they hold, so that each key on the way is known to be there.
            part = reduce(getitem, where.split(".") if where else [], case)
            check_keys(f"case {number} of {path}" + (f", {where}," if where else ""), part, keys.split())
        if not case["branches"]:
            raise ValueError(f"case {number} of {path} must have branches, got none")
        for branch in case["branches"]:
            check_keys(f"a branch of case {number} of {path}", branch, BRANCH.split())
    return cases


def check_keys(where: str, part: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuses keys that are not known, and the lack of those that are."""
    if unknown := sorted(set(part) - set(known)):
        raise ValueError(f"{where} must hold what the tests check, got unknown {unknown}")
    if missing := sorted(set(known) - set(part)):
        raise ValueError(f"{where} must hold all that the tests check, got no {missing}")
