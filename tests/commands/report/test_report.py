"""The two files of a report, of a run written by hand."""

from __future__ import annotations

import json
import re
import sys
from html import unescape
from statistics import fmean

import pytest

from appo.commands.cli import run
from appo.commands.inert import inert
from appo.commands.modules import search_folders
from appo.commands.report import write_report
from appo.commands.report.command import report_of
from appo.commands.report.document import Document, Figure, Section
from appo.commands.report.examples import chosen
from appo.commands.report.markdown import write_markdown
from appo.commands.report.page import write_html
from appo.policy.loading import load_tokenizer
from tests.commands.view.runs import HOSTILE, family, prompt, record, write_file, write_run


@pytest.fixture(scope="module")
def tokenizer(policy_folder):
    return load_tokenizer(str(policy_folder))


def write_test(folder, tokenizer, rewards):
    """What an `appo test` leaves: two trajectories of each question, of rewards by its id."""
    rows = [
        record(2 * i + j, prompt(tokenizer, f"who is {name}?", name), [5, 6], reward)
        for i, (name, pair) in enumerate(rewards.items())
        for j, reward in enumerate(pair)
    ]
    write_file(folder, "test_00000", rows)
    mean = fmean(reward for pair in rewards.values() for reward in pair)
    (folder / "test.json").write_text(json.dumps({"test/accuracy": mean, "test/accuracy/s": mean, "test/reward": mean}))


@pytest.fixture
def run_folder(tmp_path, policy_folder, tokenizer):
    first = family(tokenizer)
    second = [*family(tokenizer, "what else is it?", "r"), *family(tokenizer, first=4)]
    folder = write_run(tmp_path / "run", policy_folder, {"iteration_00000": first, "iteration_00001": second})
    # Question by question +0.5, +0.5, +1: a mean of 2/3 and a standard error of 1/6.
    write_test(folder / "before", tokenizer, {"a": (0.0, 0.0), "b": (0.0, 1.0), "c": (0.0, 0.0)})
    write_test(folder / "after", tokenizer, {"a": (1.0, 0.0), "b": (1.0, 1.0), "c": (1.0, 1.0)})
    return folder


def words(path):
    """The text of a page."""
    body = re.sub(r"</?span[^>]*>", "", path.read_text().partition("<body>")[2])
    return unescape(re.sub(r"<[^>]*>", " ", body))


def said(folder):
    """What a report says in words, without the time that pictures take."""
    document = report_of(folder, None, None, "")
    sections = [
        Section(each.title, [block for block in each.blocks if not isinstance(block, Figure)])
        for each in document.sections
    ]
    return write_markdown(Document(document.title, sections), folder / "said.md").read_text()


def test_both_files_say_the_same_of_a_run(run_folder):
    page = write_report(run_folder)
    report, text = (run_folder / "report.md").read_text(), words(page)
    # t of two degrees of freedom leaves 2.5 % above 4.303: 0.667 -+ 4.3027 / 6.
    assert "| accuracy | 0.167 [-0.55, 0.884] | 0.833 [0.116, 1.55] | +0.667 [-0.05, +1.38] |" in report
    assert "Accuracy on the 3 questions that both were asked: +0.667 [-0.05, +1.38], p = 0.057" in report
    assert "+0.667 [-0.05, +1.38], p = 0.057" in text
    # Of six branches three are worth 1 and their parents 1, 0; three are worth 0 and their parents 1.
    assert "| all | 6 | 100.0% | 50.0% | 0.0% | 50.0% | +0.000 | 0.0% |" in report
    # A family calls twice; what its last branch shares of that counts once.
    assert "| tool calls | 6 | 0 | 0 |" in report
    assert "| calls that failed: timeout | 3 (50.0%) | - | - |" in report
    assert "| cut off: length | 3 (25.0%) | 0 (0.0%) | 0 (0.0%) |" in report
    assert "No rule of a healthy run has spoken." in report
    assert (run_folder / "curves.png").stat().st_size > 1000
    assert text.count("see its tree") == 4
    html = page.read_text()
    assert 'href="view.html#step=iteration-1&amp;q=r&amp;t=0"' in html
    assert (run_folder / "view.html").stat().st_size > 100_000
    assert html.count("<picture>") == html.count('media="(prefers-color-scheme: dark)"') >= 3


def test_the_page_asks_nobody_and_runs_nothing(run_folder):
    page = write_html(Document("run", report_of(run_folder, None, None, "").sections[-2:]), run_folder / "a.html")
    page = page.read_text()
    assert "default-src 'none'; style-src 'sha256-" in page
    assert not re.search(r"<script|https?://|style=", re.sub(r"base64,[A-Za-z0-9+/=]*", "", page))
    assert "see its tree" not in page


def test_text_of_strangers_stays_text(tmp_path, policy_folder, tokenizer):
    asked = {**prompt(tokenizer, "who?"), "question": HOSTILE, "answers": ["| [x](javascript:1) <b>"]}
    response = tokenizer.encode("</pre><script>window.hacked=1</script>````", add_special_tokens=False)
    rows = [record(0, asked, response, 1.0, reward_reason=HOSTILE), record(1, asked, response, 0.0)]
    folder = write_run(tmp_path / "run", policy_folder, {"iteration_00000": rows})
    shown = Document(inert(HOSTILE), report_of(folder, None, None, "").sections[-1:])
    page = write_html(shown, folder / "a.html").read_text()
    report = write_markdown(shown, folder / "a.md").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page + report
    outside = report.split("`````")[::2]
    assert len(outside) == 3
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(java", "".join(outside).replace("![curves](curves.png)", ""))


def test_files_of_all_processes_count(tmp_path, policy_folder, tokenizer):
    files = {
        "iteration_00000_rank_00000": family(tokenizer),
        "iteration_00000_rank_00001": family(tokenizer, "what else is it?", "r"),
    }
    folder = write_run(tmp_path / "run", policy_folder, files)
    report = said(folder)
    assert "| trajectories | 8 |" in report
    assert "who is it?" in report
    assert "what else is it?" in report


def test_examples_differ_and_each_is_shown_once(tokenizer):
    rows = [*family(tokenizer), *family(tokenizer, "what else is it?", "r", first=4)]
    titles = [(title, row["id"]) for title, row in chosen(rows)]
    assert titles[:2] == [("A success", 0), ("A failure of the same question", 1)]
    # The branches 6 of 4 and 7 of 6 left different trajectories, so no two of one can be compared.
    assert titles[2:] == [("A call that failed (timeout)", 2), ("Cut off (length)", 5)]
    rows.append({**rows[6], "id": 8, "reward": 1.0})
    assert [(title, row["id"]) for title, row in chosen(rows)][2:4] == [
        ("A branch that went well", 8),
        ("A branch of the same token that did not", 6),
    ]


def test_without_tests_validations_are_compared_and_without_both_it_is_said(tmp_path, policy_folder, tokenizer):
    files = {"iteration_00000": family(tokenizer), "validation_00000": [record(0, prompt(tokenizer, "a?"), [5], 0.0)]}
    folder = write_run(tmp_path / "run", policy_folder, files)
    assert "The run has no evaluation to compare" in said(folder)
    write_file(folder, "validation_00004", [record(0, prompt(tokenizer, "a?"), [5], 1.0)])
    assert "| accuracy | 0 | 1 | +1 |" in said(folder)


def test_a_run_that_kept_no_trajectories_has_curves_all_the_same(tmp_path, policy_folder):
    folder = write_run(tmp_path / "run", policy_folder, {})
    assert "No trajectories were kept (`rollout.save_trajectories`)." in said(folder)


@pytest.mark.parametrize("is_here", [True, False])
def test_a_source_of_the_users_is_looked_for_where_the_command_is_run(run_folder, monkeypatch, is_here):
    name = f"own_questions_{is_here}".lower()
    config = run_folder / "csv/version_0/config.yaml"
    config.write_text(config.read_text() + f"data: {{source: {{class_path: {name}.OwnQuestions}}}}\n")
    if is_here:
        source = "from appo.prompts import WorldQuestions\n\n\nclass OwnQuestions(WorldQuestions):\n    pass\n"
        (run_folder / f"{name}.py").write_text(source)
    monkeypatch.chdir(run_folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    search_folders([])
    assert ("not known, since data.source of" in said(run_folder)) == (not is_here)


def test_the_command_takes_two_tests(run_folder, monkeypatch, capsys):
    monkeypatch.chdir(run_folder)
    for name in ("before", "after"):
        (run_folder / name).rename(run_folder / f"{name}_elsewhere")
    run(["report", "--run", ".", "--before", "before_elsewhere", "--after", "after_elsewhere", "--view=false"])
    assert capsys.readouterr().out == "report.html\n"
    assert "| accuracy | 0.167" in (run_folder / "report.md").read_text()
    assert not (run_folder / "view.html").exists()


def test_a_folder_without_a_run_or_a_test_is_named(tmp_path, run_folder):
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no test\.json of an appo test in"):
        write_report(run_folder, tmp_path, tmp_path)
    (run_folder / "after/test.json").unlink()
    with pytest.raises(ValueError, match="before and after must be given together, got"):
        write_report(run_folder, run_folder / "before")
