"""The server of the viewer: on loopback, for who was given its address, as the run grows."""

from __future__ import annotations

import gzip
import json
import socket
from http.client import HTTPConnection
from threading import Thread

import pytest

from appo.commands.view.command import view
from appo.commands.view.run import Run
from appo.commands.view.server import ViewServer
from tests.commands.view.runs import family, write_file


@pytest.fixture
def server(run_folder):
    server = ViewServer([Run(run_folder)])
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server, path, host="127.0.0.1", secret=None):
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    secret = server.secret if secret is None else secret
    connection.request("GET", f"/{secret}/{path}" if secret else path, headers={"Host": f"{host}:{server.server_port}"})
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply, body


def get_json(server, path):
    reply, body = get(server, path)
    assert reply.status == 200
    assert reply.headers["Content-Encoding"] == "gzip"
    return json.loads(gzip.decompress(body))


def test_a_page_and_its_data_are_served(server):
    reply, body = get(server, "")
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"<!doctype html>" in body
    assert [step["key"] for step in get_json(server, "api/0/overview")["steps"]] == ["iteration-0", "iteration-1"]
    assert len(get_json(server, "api/0/iteration-1/index")["prompts"]) == 2
    assert get_json(server, "api/0/iteration-1/tree/1")["prompt"]["id"] == "q"
    assert get_json(server, "api/0/asked") == {"q": ["iteration-0", "iteration-1"]}


def test_a_run_is_followed(server):
    _, before = get(server, "api/version")
    assert get(server, "api/version")[1] == before
    write_file(server.runs[0].folder, "iteration_00002", family(server.runs[0]._texts.tokenizer))
    assert get(server, "api/version")[1] != before
    assert get_json(server, "api/0/overview")["steps"][-1]["key"] == "iteration-2"


@pytest.mark.parametrize(
    "path",
    ["api/1/overview", "api/0/iteration-9/index", "api/0/iteration-0/tree/9", "api/0/iteration-0/tree/x", "api/0",
     "api/", "../../etc/passwd", "api/0/../../../config.yaml", "view.html"],
)  # fmt: skip
def test_what_is_not_there_is_not_found(server, path):
    assert get(server, path)[0].status == 404


def test_only_who_knows_the_address_is_answered(server):
    assert get(server, "api/0/overview", secret="x" * 22)[0].status == 404
    assert get(server, "/", secret="")[0].status == 404
    # A name of another host that leads here, as its owner may arrange.
    assert get(server, "", host="evil.example")[0].status == 404
    assert get(server, "", host="localhost")[0].status == 200


def test_it_listens_on_loopback_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url.startswith(f"http://127.0.0.1:{server.server_port}/{server.secret}/")
    assert len(server.secret) >= 20


def test_replies_say_what_a_browser_may_do_with_them(server):
    for path in ("", "api/0/overview", "gone"):
        headers = get(server, path)[0].headers
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_port_that_is_taken_is_named(run_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port must be free, got {port}"):
            view(run_folder, port=port, browser=False)


def test_a_browser_that_goes_before_its_reply_is_no_error(server, capsys):
    for error, is_said in ((BrokenPipeError(), False), (RuntimeError("a defect"), True)):
        try:
            raise error
        except (BrokenPipeError, RuntimeError):
            server.handle_error(None, ("127.0.0.1", 1))
        assert ("Traceback" in capsys.readouterr().err) == is_said
