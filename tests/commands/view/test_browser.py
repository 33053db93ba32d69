"""The page in a real browser: it draws, keys work, nothing is asked of another host, and text stays text."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs

import pytest

from appo.commands.view.run import Run
from appo.commands.view.server import ViewServer
from appo.commands.view.write import write_page
from tests.commands.view.runs import HOSTILE, family, write_file, write_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BLUE, ORANGE = "rgba(40, 120, 230", "rgba(230, 126, 20"

pytestmark = pytest.mark.slow


def missing(reason: str) -> None:
    if os.environ.get("APPO_REQUIRE_CHROMIUM"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing(f"none of {', '.join(NAMES)} is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        # Its own sandbox does without root; the pages are ours.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens an address; what the page complains of or asks of others ends the test."""
    pages = []

    def opened(url: str, **options):
        context = browser.new_context(viewport={"width": 1440, "height": 900}, **options)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.complaints, page.asked = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(url)
        pages.append((context, page))
        return page

    yield opened
    for context, page in pages:
        context.close()
        assert page.complaints == []
        assert [url for url in page.asked if not url.startswith(("file:", "http://127.0.0.1:"))] == []


@pytest.fixture
def page(visit, run_folder):
    page = visit(write_page([Run(run_folder)], run_folder / "view.html").as_uri())
    page.wait_for_selector(".token")
    return page


def says(page, selector: str, text: str) -> None:
    """Waits until the first element of a selector has a text."""
    page.locator(selector, has_text=text).first.wait_for()


def state(page) -> dict[str, str]:
    """What the link says."""
    return {name: values[0] for name, values in parse_qs(page.evaluate("location.hash").lstrip("#")).items()}


def test_a_tree_is_drawn(page):
    # The last iteration's first question, with the first root's text.
    assert page.locator(".questiontext").inner_text() == "what else is it?"
    assert page.locator(".line .name").all_text_contents() == ["1", "1.1", "1.1.1", "2"]
    assert page.locator(".line .reward").all_text_contents() == ["1.00", "0.00", "1.00", "0.00 cut"]
    assert page.locator(".line .fold").count() == 2
    assert page.locator(".fork").count() == 2
    widths = page.eval_on_selector_all(".line line", "all => all.map(each => parseFloat(each.style.strokeWidth))")
    assert widths == [7, 2, 7, 2]
    ink = page.evaluate(
        "[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 900, 60).data].some(each => each > 0)"
    )
    assert ink


def test_a_branch_stands_beside_its_parent_from_the_fork_on(page):
    page.click(".line >> nth=1")
    pair = page.locator(".pair section")
    assert pair.nth(0).locator(".token").all_inner_texts() == ["b", "c", "d"]
    assert pair.nth(1).locator(".token").all_inner_texts() == ["x", "e"]
    assert page.locator(".shared .token").all_inner_texts() == ["a"]
    assert page.locator(".token.chosen").all_inner_texts() == ["b", "x"]
    # What a tool said is folded until it is asked for.
    assert not pair.nth(1).get_by_text("S", exact=True).is_visible()
    pair.nth(1).locator("summary").click()
    assert "python ✗ timeout" in pair.nth(1).locator("details").inner_text()
    assert pair.nth(1).locator("details").inner_text().endswith("S")


def test_tokens_have_the_color_of_a_value_and_tell_all_of_them(page):
    def color(index):
        return page.locator(".token").nth(index).evaluate("each => each.style.backgroundColor")

    assert color(1).startswith(ORANGE)  # the largest entropy
    page.select_option(".metric select", "log_ratio")
    assert color(1).startswith(ORANGE)  # 0.25
    assert color(2).startswith(BLUE)  # -0.5
    assert color(0) == ""
    page.hover(".token >> nth=1")
    rows = page.locator(".tooltip tr").all_inner_texts()
    assert "likelihood gain\t1.12" in rows
    assert "log-ratio\t0.250" in rows
    assert len(rows) >= 8


def test_keys_go_through_trees_forks_values_and_steps(page):
    def pressed(keys):
        for key in keys:
            page.keyboard.press(key)
        return state(page)

    assert pressed("n")["t"] == "2"
    assert pressed("n")["t"] == "3"
    assert pressed("p")["t"] == "2"
    assert pressed("u")["t"] == "0"
    assert pressed("m")["v"] == "gain"
    assert "v" not in pressed("M")
    assert pressed("j")["q"] == "q"
    assert pressed("k")["q"] == "r"
    assert pressed("[")["step"] == "iteration-0"
    assert pressed("]")["step"] == "iteration-1"
    assert pressed("2")["tab"] == "curves"
    pressed("1")
    page.wait_for_selector("#search")
    pressed("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Escape")
    pressed("?")
    assert page.locator("[role=dialog]").is_visible()
    pressed(["Escape"])
    assert page.locator("[role=dialog]").count() == 0


def test_why_a_branch_left_where_it_did(page):
    rows = page.locator(".why tbody tr")
    assert page.locator(".why tbody .mono").all_inner_texts() == ["bat 1", "cat 3"]
    assert "↳ 1.1" in rows.nth(0).inner_text()
    page.get_by_text("show what is left out").click()
    texts = rows.all_inner_texts()
    assert "last token" in texts[2]
    assert "entropy below 0.5" in texts[3]


def test_filters_and_search_leave_what_passes(page):
    page.select_option(".filters select >> nth=1", "timeout")
    assert "4 trajectories" in page.locator(".count").inner_text()
    assert page.locator(".line.dimmed").count() == 2
    page.get_by_text("clear").click()
    page.fill("input[aria-label='search in text']", "axSf")
    says(page, ".count", "2 trajectories")
    page.fill("input[aria-label='search in text']", "nowhere")
    page.wait_for_selector("text=No trajectory passes")


def test_a_link_leads_to_what_was_seen(page, visit):
    page.keyboard.press("j")
    says(page, ".questiontext", "who is it?")
    page.keyboard.press("n")
    page.keyboard.press("m")
    again = visit(page.evaluate("location.href"))
    again.wait_for_selector(".pair .token")
    assert state(again) == state(page) == {"q": "q", "t": "6", "v": "gain"}
    assert again.locator(".questiontext").inner_text() == "who is it?"


def test_a_question_is_seen_early_and_late(page):
    page.keyboard.press("j")
    slider = page.locator("input[aria-label='step of this question']")
    slider.wait_for()
    assert slider.get_attribute("max") == "1"
    slider.fill("0")
    assert state(page)["step"] == "iteration-0"
    assert page.locator(".questiontext").inner_text() == "who is it?"


def test_curves_are_drawn_and_lead_to_their_iteration(page):
    page.keyboard.press("2")
    page.wait_for_selector(".chart canvas")
    titles = page.locator(".chart figcaption b").all_inner_texts()
    assert titles == ["Reward", "Accuracy", "Time by phase"]
    assert "roots 0.500" in page.locator(".chart .legend").nth(0).inner_text()
    box = page.locator(".chart .u-over").nth(0).bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + 40)
    page.wait_for_selector(".tree svg")
    assert state(page)["step"] == "iteration-0"


def test_two_runs_stand_side_by_side(visit, run_folder, tmp_path, policy_folder, tokenizer):
    records = [{**record, "reward": 0.25} for record in family(tokenizer)]
    other = write_run(tmp_path / "other", policy_folder, {"iteration_00001": records})
    page = visit(write_page([Run(run_folder), Run(other)], tmp_path / "two.html").as_uri() + "#tab=compare")
    page.wait_for_selector(".compare .tree >> nth=1")
    sides = page.locator(".compare > .pair > section")
    assert "mean reward 0.50" in sides.nth(0).inner_text()
    assert "mean reward 0.25" in sides.nth(1).inner_text()
    # The one question that both have.
    assert page.locator(".asked option").all_inner_texts() == ["who is it?"]
    sides.nth(1).locator(".line >> nth=1").click()
    assert state(page)["t2"] == "2"
    sides.nth(0).locator(".token >> nth=0").hover()
    assert page.locator(".tooltip").count() == 1
    page.keyboard.press("2")
    page.wait_for_selector(".chart canvas")
    assert "roots (A)" in page.locator(".legend").nth(0).inner_text()


def test_files_beside_the_page_are_read_when_they_are_asked_for(visit, run_folder):
    page = visit(write_page([Run(run_folder)], run_folder / "view.html", max_bytes=401_800).as_uri())
    page.wait_for_selector(".token")
    assert not any("iteration-0" in url for url in page.asked)
    page.keyboard.press("[")
    says(page, ".questiontext", "who is it?")
    assert any(url.endswith("view_files/0-iteration-0-rest.js") for url in page.asked)


def test_hostile_text_stays_text(visit, tmp_path, policy_folder, tokenizer):
    records = family(tokenizer, HOSTILE)
    spelled = tokenizer.encode(HOSTILE, add_special_tokens=False)
    for record in records[:1]:
        call = {**record["tool_calls"][0], **dict.fromkeys(("tool", "argument", "result", "failure"), HOSTILE)}
        record |= {"tool_calls": [call], "reward_reason": HOSTILE, "finish_reason": HOSTILE}
        record["prompt"] |= {"answers": [HOSTILE], "source": HOSTILE}
        record["reward_parts"] = {HOSTILE: 1.0}
    length = len(records[1]["token_ids"])
    records[1]["token_ids"] += spelled
    records[1] |= {
        name: value + [value[-1]] * len(spelled)
        for name, value in records[1].items()
        if isinstance(value, list) and len(value) == length
    }
    folder = write_run(tmp_path / "<img src=x onerror=window.hacked=1>", policy_folder, {"iteration_00000": records})
    page = visit(write_page([Run(folder)], tmp_path / "view.html").as_uri())
    page.wait_for_selector(".token")
    for key in ("j", "n", "n", "p", "u", "2", "1", "3", "1", "?", "Escape"):
        page.keyboard.press(key)
    page.click(".line >> nth=3")
    says(page, ".texts", "onerror=window.hacked")
    page.hover(".token >> nth=5")
    assert page.locator(".questiontext").inner_text().startswith("</script><script>window.hacked=1</script><img")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('img, iframe, object, embed').length") == 0
    # Nor would a script run that found its way into the page.
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'hacked = 1'}))")
    assert page.evaluate("window.hacked") is None
    assert len(page.complaints) == 1
    assert "Content Security Policy" in page.complaints.pop()


def test_a_run_that_trains_is_followed(visit, run_folder, tokenizer, monkeypatch):
    monkeypatch.setattr("appo.commands.view.page._POLL_MS", 50)
    server = ViewServer([Run(run_folder)])
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        page = visit(server.url)
        page.wait_for_selector(".token")
        assert page.locator(".stepname").inner_text() == "iteration 1"
        write_file(run_folder, "iteration_00002", family(tokenizer, "and now?", "s"))
        says(page, ".questiontext", "and now?")
        assert page.locator(".stepname").inner_text() == "iteration 2"
        page.goto("about:blank")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_light_and_dark(visit, run_folder, scheme):
    page = visit(write_page([Run(run_folder)], run_folder / "view.html").as_uri(), color_scheme=scheme)
    page.wait_for_selector(".token")

    def brightness():
        return page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])")

    assert (brightness() > 200) == (scheme == "light")
    page.keyboard.press("d")
    assert (brightness() > 200) != (scheme == "light")


def test_nothing_is_cut_off_on_a_small_screen(visit, run_folder):
    page = visit(write_page([Run(run_folder)], Path(run_folder) / "view.html").as_uri())
    page.wait_for_selector(".token")
    for width in (1440, 1000, 600, 380):
        page.set_viewport_size({"width": width, "height": 800})
        for key in "123":
            page.keyboard.press(key)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
