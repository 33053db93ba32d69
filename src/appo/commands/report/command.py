"""``appo report``: a run as pages that people read, in Markdown and in a browser."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from appo.commands.inert import inert
from appo.commands.report.charts import curves_section
from appo.commands.report.comparison import comparison_section, sides_of
from appo.commands.report.decisions import Decisions
from appo.commands.report.document import Block, Document, Section, Text
from appo.commands.report.examples import Decode, examples
from appo.commands.report.facts import branches_section, failures_section, health_section, training_section
from appo.commands.report.records import RunRecords
from appo.commands.run_config import config_of_run
from appo.monitoring.history import read_history

VIEW = "view.html"
"""The page of `appo view`, beside the report."""


def write_report(run: Path, before: Path | None = None, after: Path | None = None, view: bool = True) -> Path:
    """Writes ``report.md`` with ``curves.png``, and ``report.html`` with the trees in ``view.html``.

    Args:
        run: folder of an ``appo fit``.
        before: folder of an ``appo test`` of the policy it started from. `null`: ``before`` in the run's folder, if
            there is one; without tests the first and the last validation are compared.
        after: folder of an ``appo test`` of the policy it ended with. `null`: ``after`` in the run's folder, likewise.
        view: writes ``view.html``, to which the trajectories of ``report.html`` are linked.

    Returns:
        The path of ``report.html``.

    Raises:
        FileNotFoundError: if a folder does not hold what such a run writes.
        ValueError: if `before` or `after` is given alone.
    """
    # Drawing is an extra, and large.
    from appo.commands.report.markdown import write_markdown
    from appo.commands.report.page import write_html

    document = report_of(run, before, after, VIEW if view else "")
    if view and (run / "trajectories").is_dir():
        from appo.commands.view.run import Run
        from appo.commands.view.write import write_page

        write_page([Run(run)], run / VIEW)
    write_markdown(document, run / "report.md")
    return write_html(document, run / "report.html")


def report_of(run: Path, before: Path | None, after: Path | None, page: str) -> Document:
    """All that a report says.

    Args:
        run: as of `write_report`.
        before: likewise.
        after: likewise.
        page: path of the viewer's page; empty if there is none.
    """
    history, sides = read_history(run), sides_of(run, before, after)
    path, config = config_of_run([run], "run must be the folder of an appo fit")
    # Large, and not needed to say that a folder is wrong.
    from appo.commands.view.texts import tokenizer_of_run
    from appo.policy.text import decode

    decode_ids: Decode = partial(decode, tokenizer_of_run(run, config, None))
    decisions = Decisions.of(run, decode_ids)
    records = RunRecords.read(run, decisions.add)
    folders = [side.folder for side in sides or () if side.folder is not None]
    tests = (folders[0], folders[1]) if len(folders) == 2 else None
    shown: list[Block] = [*examples(records.last, decode_ids, records.last_step, page)]
    if not shown:
        shown = [Text("No trajectories were kept (`rollout.save_trajectories`).")]
    return Document(
        inert(run.resolve().name),
        [
            training_section(path, config, history),
            comparison_section(sides),
            health_section(history),
            curves_section(history, records),
            branches_section(records, decisions.blocks(tests)),
            failures_section(records.summary, sides),
            Section(f"Trajectories of {records.last_step.replace('-', ' ') or 'the run'}", shown),
        ],
    )
