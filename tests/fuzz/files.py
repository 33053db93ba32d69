"""Targets that read files of strangers: rows of questions and passages; configs and checkpoints."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import torch
from hypothesis import strategies as st
from pyarrow import parquet
from torch.distributed import checkpoint as dcp

from appo.commands.export.run_config import adapted_run, policy_of_run
from appo.distributed.checkpoint import SHARD_INDEX, open_weights
from appo.prompts import CsvQuestions, JsonlQuestions, JsonQuestions, ParquetQuestions
from appo.sft.files import FileConversations
from appo.tools.search.corpus import Columns, read_passages
from tests.fuzz.inputs import as_bytes, changed, texts
from tests.fuzz.target import Check, FindingError, Input, Target

_LONGEST_MESSAGE = 1000
"""Characters of what a user is told of a file."""

_ROW = {
    "question": "Who?",
    "answer": ["42", "x"],
    "text": "T",
    "title": "U",
    "messages": [{"role": "user", "content": "?"}],
}
_TALK = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a <result>b</result>"}]}


def _table() -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(
        pyarrow.table({"question": ["Who?", "What?"], "answer": ["1", "2"], "text": ["a", "b"]}), buffer
    )
    return buffer.getvalue()


_LINES = [json.dumps(_ROW).encode() + b"\n", json.dumps(_TALK).encode() + b"\n", b"question,answer,text\nWho?,1,T\n"]
_JSON = [
    *("{", "}", "[", "]", '"question": ', '"answer": ', '"messages": ', '"role": "user"', '"content": ', '"text": '),
    *('"x"', "\\ud800", "\\u0000", "1e999", "NaN", "-Infinity", "9" * 5000, "true", "null", ",", ":", '"', "\\"),
    *("\n", "\r", "\u2028", "\ufeff", "\xff", "\x00", "question,answer,text\n", '""', "[[", "]]", '{"a":'),
]  # fmt: skip

_READERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: list(JsonlQuestions(train=str(path)).rows("train")),
    "b.jsonl": lambda path: list(JsonlQuestions(train=str(path), quote_rows=False, id_key="id").rows("train")),
    "a.json": lambda path: list(JsonQuestions(train=str(path)).rows("train")),
    "a.csv": lambda path: list(CsvQuestions(train=str(path)).rows("train")),
    "a.parquet": lambda path: list(ParquetQuestions(train=str(path)).rows("train")),
    "talk.jsonl": lambda path: FileConversations(str(path)).load("train"),
    "corpus.jsonl": lambda path: list(read_passages(path, Columns("text", "title", None))),
    "corpus.csv": lambda path: list(read_passages(path, Columns("text", None, None))),
    "corpus.parquet": lambda path: list(read_passages(path, Columns("text", None, None))),
}


@contextmanager
def _rows() -> Iterator[Check]:
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:

        def check(value: Input) -> None:
            name, content = value
            path = Path(folder, name)
            path.write_bytes(as_bytes(content))
            _refused_in_a_line(lambda: _READERS[name](path), (ValueError,))

        yield check


_CONFIG = b"""model:
  policy: Qwen/Qwen2.5-0.5B
  dtype: float32
  lora: {rank: 8, alpha: 16, target_modules: [q_proj]}
trainer: &t {max_epochs: 1}
other: *t
"""
_YAML = [
    *("model:\n", "  policy: ", "  lora: ", "  dtype: float32\n", "{", "}", "[", "]", "rank: 8", ", ", ": ", "- "),
    *("&a ", "*a", "${oc.env:APPO_FUZZ_SECRET}", "${model.policy}", "class_path: antigravity.X"),
    *("!!python/object/apply:os.getpid []", "? ", "<<: *a", "|\n", ">\n", "'", '"', "\t", "---\n", "..."),
    *("%YAML 1.1", "!!binary ", "1e9", ".inf", "2001-01-01", "\x85"),
]  # fmt: skip


def _checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"policy.a": torch.ones(2, 2), "policy.b": torch.ones(3)}, "epoch": 1}, buffer)
    return buffer.getvalue()


def _shards() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one process saves, on purpose
        dcp.save({"state_dict": {"policy.a": torch.ones(2)}}, checkpoint_id=folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


_SHARDS = _shards()
_OPCODES = [
    *(b"c", b"\x93", b"R", b"(", b")", b"t", b"l", b"d", b"}", b"]", b"a", b"b", b"s", b"u", b"0", b"2", b"."),
    *(b"\x81", b"\x85", b"cos\nsystem\n", b"ctorch\nSize\n", b"\x8c\x04echo", b"cbuiltins\neval\n"),
    *(b"cpathlib\nPath\n", b"N", b"\x88", b"i", b"ctorch.serialization\n_get_layout\n"),
    *(b"ctorch.distributed.checkpoint.metadata\nMetadata\n", b"K\x01", b"\x80\x04"),
    *(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8a\x04\xff\xff\xff\x7f", b"ccollections\nOrderedDict\n", b"h\x00"),
    *(b"q\x00",),
]  # fmt: skip
_CAUGHT = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "os.fork")
_ACTS: list[str] = []
"""What a file has had done."""


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _CAUGHT or (event == "import" and arguments[0] == "antigravity"):
        _ACTS.append(f"{event} {arguments!r:.80}")


@contextmanager
def _strangers() -> Iterator[Check]:
    sys.addaudithook(_notice)
    os.environ["APPO_FUZZ_SECRET"] = secret = "a key of the environment"
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        for shard, content in _SHARDS.items():
            (folder / "shards" / shard).write_bytes(content)

        def check(value: Input) -> None:
            kind, content = value
            _ACTS.clear()
            if kind == "config":
                (folder / "config.yaml").write_bytes(as_bytes(content))
                ckpt = folder / "last.ckpt"
                _refused_in_a_line(lambda: policy_of_run(ckpt), (ValueError, OSError), secret)
                _refused_in_a_line(lambda: adapted_run(ckpt), (ValueError, OSError), secret)
            elif kind == "file":
                (folder / "last.ckpt").write_bytes(as_bytes(content))
                _refused_in_a_line(lambda: _read(folder / "last.ckpt"), (ValueError,))
            else:
                (folder / "shards" / kind).write_bytes(as_bytes(content))
                _refused_in_a_line(lambda: _read(folder / "shards"), (ValueError, OSError))
                (folder / "shards" / kind).write_bytes(_SHARDS[kind])
            if _ACTS:
                raise FindingError(f"was executed: {_ACTS[0]}")

        yield check


def _read(checkpoint: Path) -> None:
    weights = open_weights(checkpoint)
    weights.read(weights.tensors)


def _refused_in_a_line(
    read: Callable[[], Any], refusals: tuple[type[Exception], ...], secret: str | None = None
) -> None:
    """Lets through what no user should see: other errors, long ones, and a secret in a result."""
    try:
        result = read()
    except refusals as error:
        message = str(error)
        if len(message) > _LONGEST_MESSAGE or "\n" in message:
            raise FindingError(f"an error of {len(message)} characters: {message[:80]!r}") from error
    else:
        message = repr(result) if secret else ""
    if secret and secret in message:
        raise FindingError("a key of the environment was looked up")


def _memory() -> str | None:
    """A folder in memory, where the system has one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _pickles() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(_OPCODES), max_size=30).map(lambda codes: b"".join(codes).decode("latin-1"))


_INDEX, (_SHARD,) = SHARD_INDEX, [name for name in _SHARDS if name != SHARD_INDEX]
TARGETS = [
    Target(
        "rows",
        st.tuples(st.sampled_from(sorted(_READERS)), st.one_of(texts(_JSON), changed(_LINES)))
        | st.tuples(st.sampled_from(["a.parquet", "corpus.parquet"]), changed([_table()])),
        _rows,
        seconds=0.5,
        memory_mb=128,
    ),
    Target(
        "strangers",
        st.tuples(st.just("config"), st.one_of(texts(_YAML), changed([_CONFIG])))
        | st.tuples(st.just("file"), changed([_checkpoint(), pickle.dumps({"state_dict": {}})]))
        | st.tuples(st.just(_INDEX), st.one_of(changed([_SHARDS[_INDEX]]), _pickles()))
        | st.tuples(st.just(_SHARD), changed([_SHARDS[_SHARD]])),
        _strangers,
        seconds=1.0,
        memory_mb=128,
    ),
]
