from __future__ import annotations

import pytest

from appo.core.secrets import fill_in, refuse_secrets, without_secrets


def test_variables_are_filled_in_at_any_depth(monkeypatch):
    monkeypatch.setenv("SOME_KEY", " s3cret\n")
    template = {"a": "Bearer {SOME_KEY}", "b": [{"c": "{SOME_KEY}-{SOME_KEY}"}, 3], "d": '{"e": 1} {0} {}'}
    assert fill_in(template, "headers") == {
        "a": "Bearer s3cret",
        "b": [{"c": "s3cret-s3cret"}, 3],
        "d": '{"e": 1} {0} {}',
    }


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_or_empty_is_named(monkeypatch, value):
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(ValueError, match=r"headers must name environment variables that are set, got {SOME_KEY}"):
        fill_in({"a": "{SOME_KEY}"}, "headers")


@pytest.mark.parametrize("name", ["Authorization", "X-API-Key", "OPENAI_API_KEY", "auth_token", "Cookie"])
def test_a_key_itself_is_refused_and_not_shown(name):
    refuse_secrets({name: "Bearer {SOME_KEY}", "Accept-Language": "en", "tokens": "3"}, "headers")
    with pytest.raises(ValueError, match=f"headers.{name} must take its value from an environment variable") as error:
        refuse_secrets({name: "s3cret"}, "headers")
    assert "s3cret" not in str(error.value)


def test_a_text_is_shown_without_the_keys_that_were_sent(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "s3cret\n")
    monkeypatch.delenv("OTHER_KEY", raising=False)
    templates = {"a": "Bearer {SOME_KEY}", "b": "{OTHER_KEY}", "c": "en"}
    assert without_secrets("the key s3cret is wrong, s3cret!", templates) == "the key *** is wrong, ***!"
