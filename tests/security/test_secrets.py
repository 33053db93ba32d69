"""No key is written into a file of a run, wherever in a config it stands."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest
import yaml

from appo.commands.cli import resolve_fit
from appo.commands.lightning_cli import AppoCLI
from appo.commands.saved_config import make_private
from appo.core.secrets import refuse_secrets, refuse_secrets_in_arguments, refuse_secrets_in_url
from appo.engines.vllm_server.answers import ServerError
from appo.engines.vllm_server.engine import VLLMServerEngine
from appo.engines.vllm_server.pool import ServerPool, Weights
from appo.rewards import JudgeReward
from appo.tools import HTTPSearch, MCPTools
from tests.security.bombs import answering
from tests.small_run import CONFIG, FEW_TOKENS

KEY = "s3cret"
HIDDEN = [
    {"auth": {"api_key": KEY}},
    {"list": [{"token": KEY}]},
    {"X-Passwd": KEY},
    {"deep": [[{"more": {"clientSecret": KEY}}]]},
    {"keys": [KEY]},
    {"token": {"value": KEY}},
    {"auth": {"type": "basic", "user": "me", "pass": KEY}},
    {"password": 12345},
    {"subscription-key": KEY},
    {"APIKey": KEY},
    {"plain": "sk-abcdefghijklmnop"},
    {"plain": ["Bearer abcdefghijkl"]},
    {"X-Amz-Signature": KEY},
    {"proxy": "Proxy-Authorization: Basic " + KEY},
    {"lines": ["Accept: */*", "X-Api-Key: " + KEY]},
    {"certificate": "-----BEGIN EC PRIVATE KEY-----\n" + KEY},
    {"callback": "https://x/y?access_token=" + KEY},
]


@pytest.mark.parametrize("fields", HIDDEN, ids=json.dumps)
def test_a_key_is_refused_at_any_depth_and_not_shown(fields):
    with pytest.raises(ValueError, match="must take its value from an environment variable") as error:
        refuse_secrets(fields, "fields")
    assert KEY not in str(error.value)


def test_a_variable_stands_for_a_key_at_any_depth():
    for fields in HIDDEN:
        if KEY in (text := json.dumps(fields)):
            refuse_secrets(json.loads(text.replace(KEY, "{SOME_KEY}")), "fields")


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": 3, "max_tokens": 5, "Accept-Language": "en", "keyword": "x", "author": "me", "monkey": "x"},
        {"auth": {"type": "bearer", "value": "{SOME_KEY}"}},
        {"site": "https://x/y?page=3", "note": "the key: a word", "Accept": "text/html: q=1"},
        {
            "key": None,
            "token": True,
            "top_k": 4,
            "session_length": 3,
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ],
)
def test_what_is_no_key_is_let_be(fields):
    refuse_secrets(fields, "fields")


@pytest.mark.parametrize(
    "make",
    [
        lambda: HTTPSearch("http://x", fields={"auth": {"api_key": KEY}}),
        lambda: HTTPSearch("http://x", headers={"X-Passwd": KEY}),
        lambda: JudgeReward("m", extra_body={"extra": [{"token": KEY}]}),
        lambda: JudgeReward("m", f"http://x/v1?api_key={KEY}"),
        lambda: VLLMServerEngine([f"http://me:{KEY}@x"]),
        lambda: VLLMServerEngine([f"http://x?token={KEY}"]),
        lambda: MCPTools(url=f"http://me:{KEY}@x"),
        lambda: MCPTools(url=f"http://x?key={KEY}"),
        lambda: MCPTools(command=["server", "--api-key", KEY]),
        lambda: MCPTools(command=["server", f"--token={KEY}"]),
        lambda: MCPTools(command=["env", f"API_KEY={KEY}", "server"]),
        lambda: MCPTools(command=["bridge", "http://x", "--header", f"Authorization: Bearer {KEY}"]),
        lambda: MCPTools(command=["bridge", f"http://x?api_key={KEY}"]),
        lambda: MCPTools(command=["bridge", f"--url=http://me:{KEY}@x"]),
        lambda: MCPTools(command=["bridge"], env={"DATABASE": f"postgres://me:{KEY}@x/y"}),
    ],
)
def test_every_option_that_may_hold_a_key_is_looked_at(make):
    with pytest.raises(ValueError, match=r"must (take its value from|have no user)") as error:
        make()
    assert KEY not in str(error.value)


def test_a_key_that_a_server_repeats_is_not_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)

    async def call(address: str) -> None:
        pool = ServerPool([address], {"Authorization": "Bearer {SOME_KEY}"}, 5.0, 5.0, Weights("run-0", None))
        await pool.servers[0].call("POST", "/inference/v1/generate", {})

    for status in (401, 503):
        # Cut in the middle of a key, half of it would be left.
        with (
            answering(status, {}, b"." * 497 + KEY.encode()) as (address, requests),
            pytest.raises((ServerError, ValueError), match=rf"answered {status}: [.]+") as error,
        ):
            asyncio.run(call(address))
        assert requests.get(timeout=5.0)["authorization"] == f"Bearer {KEY}"
        assert KEY[:3] not in str(error.value)


def test_arguments_and_addresses_without_keys_are_let_be():
    refuse_secrets_in_arguments(["python", "-m", "server", "--port", "80", "--token-limit=5", "--key={KEY}"], "command")
    refuse_secrets_in_url("http://x/y?page=3", "url")


@pytest.fixture
def options(tmp_path, monkeypatch) -> list[str]:
    """Of a run whose config asks for a key in each way that there is."""
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("HOW_MANY", "7")
    overlay = {
        "data": {"system_prompt": "${oc.env:SOME_KEY}"},
        "model": {"policy": "folder/${data.system_prompt}"},
        "trainer": {"max_epochs": "${oc.env:HOW_MANY}", "default_root_dir": str(tmp_path)},
        "rollout": {"reward": {"class_path": "JudgeReward", "init_args": {"model": "${oc.decode:${oc.env:SOME_KEY}}"}}},
    }
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    return ["--config", CONFIG, "--config", str(tmp_path / "overlay.yaml"), *FEW_TOKENS]


def test_what_comes_from_the_environment_is_saved_as_interpolation(options):
    dumped = resolve_fit(options).config
    assert KEY not in json.dumps(dumped)
    assert dumped["data"]["system_prompt"] == "${oc.env:SOME_KEY}"
    assert dumped["rollout"]["reward"]["init_args"]["model"] == "${oc.decode:${oc.env:SOME_KEY}}"
    assert "${" in dumped["model"]["policy"]
    assert dumped["trainer"]["max_epochs"] == 7


def test_a_saved_config_is_a_config(options, tmp_path):
    cli = AppoCLI("fit", options)
    text = cli.parser.dump(cli.config, skip_none=False)
    assert text.startswith("# appo ")
    assert KEY not in text
    (tmp_path / "saved.yaml").write_text(text)
    again = AppoCLI("fit", ["--config", str(tmp_path / "saved.yaml")])
    assert again.config.data.system_prompt == KEY
    assert again.config.model.policy == f"folder/{KEY}"
    assert again.config.trainer.max_epochs == 7


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_private_file_is_for_its_owner_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "old").write_text("x")
        (tmp_path / "old").chmod(0o666)
        for path in (tmp_path / "old", tmp_path / "folder/new"):
            make_private(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        make_private(tmp_path / "link")
    assert not Path(tmp_path / "elsewhere").exists()
