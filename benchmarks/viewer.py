"""Measures the viewer: how long its page takes to be written, how large it is, and when the first picture stands.

Without ``--run`` an iteration is made up: 16 prompts with 16 trajectories of 4,000 tokens each, half of them branches,
with every value that a run keeps. The first paint is the time from the navigation to the frame in which the tree, the
text of a trajectory and the table of candidates stand, as the page marks it; a new browser context for every visit, so
that nothing is cached. Chromium comes from the system.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from appo.commands.view.run import Run
from appo.commands.view.server import ViewServer
from appo.commands.view.write import write_page
from appo.monitoring.trajectory_files import TrajectoryWriter, significant
from appo.policy.loading import load_tokenizer
from appo.sft import TinyPolicy, WorldConversations

CONFIG = (
    "rollout: {branching: {num_trajectories: 16, num_roots: 8}, limits: {max_response_tokens: 4096}, rewards: {}}\n"
)
ROOTS, BRANCHES = 8, 8
COLUMNS = ("behavior_log_probs", "old_log_probs", "entropies", "scores", "score_entropy", "score_likelihood_gain",
           "advantages", "importance_weights", "loss_shares")  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What was measured; `busy` is the time that the page's thread had a processor until the picture stood."""

    read_s: float
    write_s: float
    page_mb: float
    beside_mb: float
    paint_from_disk_ms: float
    slowest_from_disk_ms: float
    busy_from_disk_ms: float
    paint_served_ms: float
    slowest_served_ms: float
    busy_served_ms: float


def records(num_prompts: int, num_tokens: int, vocabulary: int) -> Iterator[dict[str, Any]]:
    """Made-up trajectories: roots of a prompt, then a branch from the middle of each."""
    draw = random.Random(0)
    asked = [draw.randrange(70, vocabulary) for _ in range(40)]
    for number in range(num_prompts):
        prompt = {
            "id": f"q{number}",
            "question": f"Question {number}?",
            "token_ids": asked,
            "answers": ["a"],
            "source": "s",
        }
        roots: list[list[int]] = []
        for row in range(ROOTS + BRANCHES):
            parent = None if row < ROOTS else row - ROOTS
            start = 0 if parent is None else num_tokens // 2
            shared = [] if parent is None else roots[parent][:start]
            tokens = shared + [draw.randrange(70, vocabulary) for _ in range(num_tokens - len(shared))]
            roots.append(tokens)
            mask = [0] * 40 + [int(i % 500 >= 50) for i in range(num_tokens)]
            yield {
                "id": number * (ROOTS + BRANCHES) + row,
                "parent_id": None if parent is None else number * (ROOTS + BRANCHES) + parent,
                "prompt": prompt | {"is_public": True},
                "tool_calls": [],
                "finish_reason": "eos",
                "branch_position": None if parent is None else 39 + start,
                "branch_score": None if parent is None else 1.0,
                "token_ids": asked + tokens,
                "response_mask": mask,
                "policy_versions": [each - 1 for each in mask],
                "evaluated_by": 1,
                "reward": float(draw.random() < 0.5),
                "reward_parts": {},
                "reward_reason": "",
                **{name: [draw.random() * each for each in mask] for name in COLUMNS},
            }


def made_up_run(folder: Path, num_prompts: int, num_tokens: int) -> Path:
    """A run of one iteration."""
    TinyPolicy(WorldConversations(), hidden_size=64, num_layers=1, num_heads=2, mlp_size=64).build(folder / "policy")
    (folder / "config.yaml").write_text(CONFIG)
    vocabulary = len(load_tokenizer(str(folder / "policy")))
    with TrajectoryWriter(folder / "trajectories/iteration_00000.jsonl.zst") as writer:
        writer.write(records(num_prompts, num_tokens, vocabulary))
    return folder


def paints(browser: Browser, url: str, visits: int) -> tuple[float, float, float]:
    """Milliseconds to the first picture, median and slowest of some visits, and of the page's thread on a processor."""
    found, busy = [], []
    for _ in range(visits):
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.set_default_timeout(120_000)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(url)
        page.wait_for_selector(".tree svg")
        while not (
            marks := page.evaluate("performance.getEntriesByName('appo:painted').map((each) => each.startTime)")
        ):
            pass
        found.append(marks[0])
        spent = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        busy.append(1000.0 * spent["TaskDuration"])
        page.context.close()
    return round(statistics.median(found)), round(max(found)), round(statistics.median(busy))


def measure(folder: Path, visits: int) -> Measured:
    """Writes and serves the page of a run, and looks at it."""
    out = Path(tempfile.mkdtemp())
    begin = time.perf_counter()
    run = Run(folder)
    run.index(run.last_iteration().key)
    read_s = time.perf_counter() - begin
    begin = time.perf_counter()
    page = write_page([run], out / "view.html")
    write_s = time.perf_counter() - begin
    server = ViewServer([run])
    Thread(target=server.serve_forever, daemon=True).start()
    browsers = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, browsers)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        from_disk = paints(browser, page.as_uri(), visits)
        served = paints(browser, server.url, visits)
        browser.close()
    server.shutdown()
    beside = sum(file.stat().st_size for file in out.glob("view_files/*"))
    megabytes = significant_of(page.stat().st_size / 1e6), significant_of(beside / 1e6)
    shutil.rmtree(out)
    return Measured(significant_of(read_s), significant_of(write_s), *megabytes, *from_disk, *served)


def significant_of(value: float) -> float:
    """Three digits of a number."""
    return float(significant(np.array([value]), 3)[0])


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a run, such as that of the demo, instead of a made-up one")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4000, help="of a trajectory")
    parser.add_argument("--visits", type=int, default=5)
    options = parser.parse_args()
    made_up = Path(tempfile.mkdtemp())
    folder = options.run or made_up_run(made_up, options.prompts, options.tokens)
    result = asdict(measure(folder, options.visits))
    shutil.rmtree(made_up)
    of = {"run": options.run.name} if options.run else {"trajectories": 16 * options.prompts, "tokens": options.tokens}
    print(json.dumps(of | result | {"machine": f"{os.cpu_count()} cores, {platform.machine()}"}, indent=2))


if __name__ == "__main__":
    main()
