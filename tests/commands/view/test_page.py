"""The page as a file: what it is made of, what it may do, and how large it grows."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from gzip import decompress
from hashlib import sha256
from pathlib import Path

import pytest

from appo.commands.cli import run as run_command
from appo.commands.view import page as page_module
from appo.commands.view.page import html_page
from appo.commands.view.run import Run
from appo.commands.view.write import write_page
from tests.commands.view.runs import HOSTILE, family, write_run

FOLDER = Path(page_module.__file__).parent


def blocks(text: str) -> dict:
    found = re.findall(r'<script type="text/plain" id="block:([^"]+)">([^<]*)</script>', text)
    return {key: json.loads(decompress(b64decode(block))) for key, block in found}


def test_a_page_holds_all_steps_of_a_run(run_folder):
    page = write_page([Run(run_folder)], run_folder / "view.html")
    found = blocks(page.read_text())
    assert {*found} == {
        "0/overview", "0/asked", "0/iteration-1/index", "0/iteration-1/tree/0", "0/iteration-1/tree/1",
        "0/iteration-0/index", "0/iteration-0/tree/0",
    }  # fmt: skip
    assert found["0/iteration-0/tree/0"]["prompt"]["question"] == "who is it?"
    assert not (run_folder / "view_files").exists()


def test_what_does_not_fit_lies_beside_the_page(run_folder, monkeypatch):
    monkeypatch.setattr("appo.commands.view.write._RESERVED", 0)
    old = run_folder / "view_files/0-iteration-7-rest.js"
    old.parent.mkdir()
    old.write_text("appoPage({})")
    # Overview and index of the last iteration take about 1,500.
    page = write_page([Run(run_folder)], run_folder / "view.html", max_bytes=1800)
    inside, text = blocks(page.read_text()), page.read_text()
    meta = json.loads(re.search(r'id="meta">(.*?)</script>', text)[1])
    # The last iteration comes first.
    assert "0/iteration-1/index" in inside
    assert meta["files"]["0/iteration-0/tree/0"] == "view_files/0-iteration-0-rest.js"
    assert {*inside} & {*meta["files"]} == set()
    assert not old.exists()
    script = (run_folder / "view_files/0-iteration-0-rest.js").read_text()
    (block,) = json.loads(re.fullmatch(r"appoPage\((.*)\);\n", script)[1]).values()
    assert json.loads(decompress(b64decode(block)))["prompt"]["id"] == "q"
    assert "file:" in re.search(r"script-src[^;]*", text)[0]


def test_a_page_runs_what_it_came_with_and_nothing_else():
    text = html_page(["run"], {"0/overview": b"x"})
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'none'"
    for kind, element in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        found = re.findall(element, text, re.DOTALL)
        hashes = [f"'sha256-{b64encode(sha256(each.encode()).digest()).decode()}'" for each in found]
        assert rules[kind].split() == hashes
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", sorted(FOLDER.glob("page/*.js")), ids=lambda path: path.name)
def test_no_script_takes_text_for_html_or_code(path):
    text = path.read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerously|\beval\b|new Function|srcdoc", text
    )
    assert len(text.splitlines()) <= 300
    assert "</script" not in text.lower()


def test_every_script_is_part_of_the_page():
    assert {*page_module._PARTS} == {path.stem for path in FOLDER.glob("page/*.js")}


def test_libraries_are_those_that_were_taken_in():
    listed = re.findall(
        r"^\| `([\w.-]+)` \| .* \| `([0-9a-f]{64})` \|$", (FOLDER / "vendor/README.md").read_text(), re.MULTILINE
    )
    assert {name for name, _ in listed} == {path.name for path in FOLDER.glob("vendor/*") if path.name != "README.md"}
    for name, digest in listed:
        assert sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == digest, name


def test_hostile_text_ends_no_element(tmp_path, policy_folder, tokenizer):
    records = family(tokenizer, HOSTILE)
    folder = write_run(tmp_path / "<img src=x>", policy_folder, {"iteration_00000": records})
    text = write_page([Run(folder)], tmp_path / "view.html").read_text()
    assert "window.hacked" not in text
    assert "<img" not in text
    assert blocks(text)["0/iteration-0/tree/0"]["prompt"]["question"] == HOSTILE


def test_the_command_writes_a_page(run_folder, tmp_path, capsys):
    run_command(["view", str(run_folder), "--against", str(run_folder), "--out", str(tmp_path / "out/two.html")])
    assert capsys.readouterr().out == f"view: {tmp_path}/out/two.html\n"
    assert "1/iteration-1/tree/0" in blocks((tmp_path / "out/two.html").read_text())


def test_a_port_that_is_none_is_refused(run_folder):
    with pytest.raises(ValueError, match="port must lie between 0 and 65535, got 70000"):
        run_command(["view", str(run_folder), "--port", "70000"])
