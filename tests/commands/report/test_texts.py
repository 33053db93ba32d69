from __future__ import annotations

from functools import partial

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from appo.commands.report import branched_texts
from appo.policy.text import decode

WORDS = {"[pad]": 0, "who": 1, "is": 2, "it": 3, "ann": 4, "ben": 5}


def record(
    row: int, token_ids: list[int], reward: float, parent: int | None = None, position: int | None = None
) -> dict:
    prompt = {"id": "q", "question": "who?", "token_ids": [1], "answers": ["ann"], "source": ""}
    return {
        "id": row,
        "parent_id": parent,
        "prompt": prompt,
        "token_ids": token_ids,
        "branch_position": position,
        "branch_score": None if position is None else 1.25,
        "reward": reward,
    }


RECORDS = [record(0, [1, 2, 3, 4], 1.0), record(1, [1, 2, 3, 5], 0.0), record(2, [1, 2, 3, 5], 0.0, 0, 2)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[pad]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[pad]")
    wrapped.chat_template = "{{ messages[0]['content'] }}"
    return wrapped


def test_a_branch_is_marked_behind_the_last_shared_token(tokenizer):
    lines = branched_texts(RECORDS, partial(decode, tokenizer), number=1)[0]
    text = "\n".join(lines)
    assert "is it⟦branch 1⟧ann" in text
    assert "branch 1, score 1.25, reward 0.00:" in text
    assert "...ben" in text


def test_branches_of_branches_are_shown_where_they_left(tokenizer):
    tree = [
        record(0, [1, 2, 3, 4, 5, 2], 0.5),
        record(1, [1, 2, 5, 5, 4], 0.0, 0, 1),
        record(2, [1, 2, 3, 4, 3, 3], 0.25, 0, 3),
        record(3, [1, 2, 5, 5, 2, 2], 0.75, 1, 3),
        record(4, [1, 2, 5, 3, 3], 1.0, 1, 2),
        record(5, [1, 2, 5, 3, 4], 0.0, 4, 3),
    ]
    # Its branches lie farther apart than those that left the root above, but not than all of that tree.
    other = [
        {**entry, "prompt": {**entry["prompt"], "id": "r", "question": "who else?"}}
        for entry in (record(6, [1, 4], 0.0), record(7, [1, 4], 0.0, 6, 0), record(8, [1, 4], 0.5, 6, 0))
    ]
    first, second = branched_texts([*tree, *other], partial(decode, tokenizer), number=2)
    titles = [line for line in first if line.endswith(":")]
    assert titles == [
        "reward 0.50:",
        "branch 1, score 1.25, reward 0.00:",
        "branch 1.1, score 1.25, reward 1.00:",
        "branch 1.1.1, score 1.25, reward 0.00:",
        "branch 1.2, score 1.25, reward 0.75:",
        "branch 2, score 1.25, reward 0.25:",
    ]
    texts = [first[first.index(title) + 2] for title in titles]
    assert texts == [
        "is⟦branch 1⟧it ann⟦branch 2⟧ben is",
        "...ben⟦branch 1.1⟧ben⟦branch 1.2⟧ann",
        "...it⟦branch 1.1.1⟧it",
        "...ann",
        "...is is",
        "...it it",
    ]
    assert second[0] == "**who else?** (answer: ann)"


def test_questions_are_shown_once_with_a_root_that_fared_otherwise(tokenizer):
    others = [
        {**entry, "id": 10 + entry["id"], "prompt": {**entry["prompt"], "id": "r", "question": "who else?"}}
        for entry in (record(0, [1, 2, 3, 5], 0.5), record(1, [1, 2, 3, 5], 0.5))
    ]
    branched = [
        record(2, [1, 2, 3, 5], 0.0),
        record(3, [1, 2, 3, 4], 1.0, 2, 2),
        record(4, [1, 2, 3, 5], 0.0, 2, 1),
        record(5, [1, 3, 3, 4], 1.0),
    ]
    first, second = branched_texts([record(0, [1, 2, 3, 5], 0.0), *branched, *others], partial(decode, tokenizer), 3)
    assert first[0] == "**who?** (answer: ann)"
    assert "reward 0.00:" in first
    assert "another root, reward 1.00:" in first
    assert first.index("branch 1, score 1.25, reward 0.00:") < first.index("branch 2, score 1.25, reward 1.00:")
    assert second[0] == "**who else?** (answer: ann)"
    assert "another root, reward 0.50:" in second
