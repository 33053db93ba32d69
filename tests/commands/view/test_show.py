"""Trees in the terminal."""

from __future__ import annotations

import pytest

from appo.commands.cli import run as run_command
from appo.commands.view.show import show
from tests.commands.view.runs import HOSTILE, family, write_run


def test_a_tree_is_printed_with_its_branches_where_they_left(run_folder, capsys):
    run_command(["show", "--run", str(run_folder), "--question", "who is"])
    assert capsys.readouterr().out.splitlines() == [
        "run, iteration 1, one of 2 questions",
        "who is it?",
        "expected: ann; 4 trajectories",
        "",
        "root 1: reward 1.00, 5 tokens",
        "  a⟦1.1⟧b[search: 1 tokens]cd",
        "  branch 1.1: reward 0.00, 3 tokens, from token 1, score 3.00",
        "    ...x[timeout: 1 tokens]⟦1.1.1⟧e",
        "    branch 1.1.1: reward 1.00, 1 tokens, from token 3, score 1.00",
        "      ...f",
        "",
        "root 2: reward 0.00, 2 tokens, cut (length)",
        "  ab",
    ]


def test_the_question_that_is_shown_unasked_has_branches_that_fared_differently(tmp_path, policy_folder, tokenizer):
    dull = [{**record, "reward": 1.0} for record in family(tokenizer, "dull?", "d")]
    records = [*dull, *family(tokenizer, "telling?", "t", first=4)]
    text = show(write_run(tmp_path / "r", policy_folder, {"iteration_00000": records}))
    assert "telling?" in text
    assert "dull?" in show(tmp_path / "r", question="d")


def test_tokens_are_colored_by_a_value(run_folder):
    text = show(run_folder, question="q", value="log_ratio", color="always")
    # +0.25 of at most 0.5, -0.5, and 0.
    assert "a⟦1.1⟧\x1b[30;48;5;216mb\x1b[0m[search: 1 tokens]\x1b[30;48;5;69mc\x1b[0md" in text
    assert "\x1b" not in show(run_folder, question="q", value="log_ratio")


def test_a_terminal_is_not_obeyed_to(tmp_path, policy_folder, tokenizer):
    text = f"{HOSTILE}\u202e\x9b31m"
    records = family(tokenizer, text)
    records[0]["tool_calls"][0]["tool"] = text
    records[1]["finish_reason"] = text
    spelled = tokenizer.encode(text, add_special_tokens=False)
    length = len(records[1]["token_ids"])
    records[1]["token_ids"] += spelled
    records[1] |= {
        name: value + [value[-1]] * len(spelled)
        for name, value in records[1].items()
        if isinstance(value, list) and len(value) == length
    }
    shown = show(write_run(tmp_path / "r", policy_folder, {"iteration_00000": records}))
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*shown}
    assert shown.count("window.hacked") == 8
    assert "␛]0;owned␇" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"question": "nobody"},
            r"question must be the id or a part of one of 2 such as 'what else is it\?'.*got 'nobody'",
        ),
        ({"step": "iteration-7"}, "step must be one of iteration-0, iteration-1, got 'iteration-7'"),
        ({"value": "beauty"}, "value must be one of entropy, gain, .*got 'beauty'"),
    ],
)
def test_what_is_not_there_is_named(run_folder, options, message):
    with pytest.raises(ValueError, match=message):
        show(run_folder, **options)
