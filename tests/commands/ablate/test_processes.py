from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from appo.commands.ablate.processes import Children, Stopped, alone_in, interruptible


def test_a_command_leaves_its_status_and_what_it_says(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    assert Children().run(["train"], log) == 2
    before, command, message = log.read_text().splitlines()
    assert before == "before"
    assert command.endswith("-m appo train")
    assert "no command is named 'train'" in message


def test_nothing_starts_after_a_stop(tmp_path):
    children = Children()
    children.stop()
    with pytest.raises(Stopped):
        children.run(["--help"], tmp_path / "log.txt")
    assert "usage" not in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_end_is_an_interrupt(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible(Children()):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_an_interrupt_that_is_lost_where_it_finds_the_process_ends_the_runs_all_the_same(tmp_path):
    children = Children()

    with interruptible(children):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            children.run(["--help"], tmp_path / "log.txt")


def test_a_folder_stays_locked_as_long_as_a_process_that_was_started_in_it_lives(tmp_path):
    command = [sys.executable, "-c", "input()"]
    with alone_in(tmp_path) as lock:
        orphan = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(ValueError, match="out must not be in use"), alone_in(tmp_path):
        pass
    orphan.communicate(b"\n")
    with alone_in(tmp_path):
        pass
