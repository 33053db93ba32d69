import pytest
import torch

from appo.engines.hf.stopping import StopRules, may_complete


@pytest.mark.parametrize(
    ("token", "stop", "expected"),
    [
        (">", "</python>", True),
        ("on>", "</python>", True),
        ("</python>", "</python>", True),
        ("h>\n\n", "</search>", True),
        ("x</python>y", "</python>", True),
        ("x>", "</python>", False),
        ("<think>", "</python>", False),
        ("python", "</python>", False),
        ("a>b>", "</b>", False),
        (" >b>", "b>", True),
        ("\ufffd", "</python>", False),
        ("\ufffd", "é", True),
        ("", "a", False),
    ],
)
def test_only_tokens_that_can_bring_the_last_character_are_looked_at(token, stop, expected):
    assert may_complete(token, stop) == expected


def test_no_completion_is_overlooked_whatever_the_tokens(tokenizer):
    rules = StopRules(tokenizer, len(tokenizer), frozenset())
    stop = ("</search>", "é,", "🎉", "n")
    number = rules.number_of(stop)
    generator = torch.Generator().manual_seed(0)
    texts = ["x</search>\n", "café, naïve", "🎉", "</python>n", "東京 é, 🎉 </search>"]
    sequences = [tokenizer.encode(text) for text in texts]
    sequences += [torch.randint(2, len(tokenizer), (40,), generator=generator).tolist() for _ in range(40)]
    num_found = 0
    for sequence in sequences:
        for end in range(1, len(sequence) + 1):
            text = tokenizer.decode(sequence[:end])
            if any(string in text for string in stop):
                assert rules.may_end(torch.tensor([number]), torch.tensor([sequence[end - 1]])).all()
                assert rules.find_stop(sequence[:end], stop) in text
                num_found += 1
                break
            assert rules.find_stop(sequence[:end], stop) is None
    assert num_found > 20


def test_end_tokens_may_end_every_row_and_other_tokens_none_without_stop_strings(tokenizer):
    rules = StopRules(tokenizer, len(tokenizer), frozenset({1, 7}))
    token_ids = torch.arange(len(tokenizer))
    ended = rules.may_end(torch.full_like(token_ids, rules.number_of(())), token_ids)
    assert ended.nonzero()[:, 0].tolist() == [1, 7]
    assert rules.find_stop([5, 6], ()) is None
