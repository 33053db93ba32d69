"""Writes the folder of a new task."""

from __future__ import annotations

import json
import keyword
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

from appo.commands.new.examples import Example, Kind, documents, examples

_TEMPLATES = Path(__file__).parent / "templates"
_NUM_TRAIN, _NUM_TEST, _NUM_DEMONSTRATIONS = 16, 4, 440


@dataclass(frozen=True)
class _Tool:
    """What a kind of task calls.

    Attributes:
        tag: name of the tool.
        config: its item in the list of tools.
        about: what the task is about.
        file: template and name of the file that holds it; empty where it is one of the package's.
        extra: of the package that it needs; empty for none.
        test: that it answers; empty where a run's start shows it.
        imports: of that test.
    """

    tag: str
    config: str
    about: str
    file: tuple[str, str] = ("", "")
    extra: str = ""
    test: str = ""
    imports: str = ""


_CALCULATES = """def test_the_tool_answers():
    assert calculate("12 + 5") == 17
    with pytest.raises(ToolError, match="an expression looks like"):
        calculate("12 plus 5")


"""

_FINDS = """def test_the_tool_answers():
    documents = BM25Search(str(FOLDER / "documents.jsonl"), title_key="title")
    documents.start()
    assert documents.search("Nora Field", 1)[0].startswith("Nora Field: ")


"""

_TOOLS: Mapping[Kind, _Tool] = {
    "function": _Tool(
        tag="calculate",
        about="Stories with two numbers, and a function of one's own that adds or subtracts.",
        file=("tool_function.py", "{{name}}_tool.py"),
        config='- {class_path: FunctionTool, init_args: {function: "{{name}}_tool:calculate"}}',
        test=_CALCULATES,
        imports="from appo.tools import ToolError\nfrom {{name}}_tool import calculate\n",
    ),
    "mathematics": _Tool(
        tag="python",
        about="Stories with three numbers, and Python in a sandbox to calculate with.",
        config=(
            "# Code runs in a sandbox: no network, no files, seconds and megabytes are limited.\n"
            "- {class_path: PythonTool, init_args: {timeout_s: 5}}"
        ),
    ),
    "search": _Tool(
        tag="search",
        about="Questions about people, and a search over documents of one's own, `documents.jsonl`.",
        extra="search",
        config=(
            '# A document a line, {"title": "...", "text": "..."}; CSV and Parquet do as well.\n'
            "- class_path: SearchTool\n"
            "  init_args:\n"
            "    max_results: 1\n"
            "    backend: {class_path: BM25Search, init_args: {corpus: {{folder}}/documents.jsonl, title_key: title}}"
        ),
        test=_FINDS,
        imports="from appo.tools import BM25Search\n",
    ),
    "mcp": _Tool(
        tag="calculate",
        about="Stories with two numbers, and a server of the Model Context Protocol that adds or subtracts.",
        file=("tool_mcp.py", "{{name}}_server.py"),
        extra="mcp",
        config=(
            "# Started with a run and stopped with it; `url` in place of `command` takes a server that runs already.\n"
            "- {class_path: MCPTools, init_args: {command: [{{python}}, {{folder}}/{{name}}_server.py]}}"
        ),
        test=_CALCULATES,
        imports="from mcp.server.mcpserver.exceptions import ToolError\nfrom {{name}}_server import calculate\n",
    ),
}


def new(folder: Path, kind: Kind = "function", policy: str | None = None) -> str:
    """Writes a folder with a task that runs as it stands: questions, reward, tool, config, test.

    Args:
        folder: to be written; its name is the task's.
        kind: of the tool: `function` is one of yours, `mathematics` runs Python in a sandbox, `search` looks into
            documents of yours, `mcp` asks a server of the Model Context Protocol.
        policy: Hugging Face folder or name to start with. `null`: a tiny one that `appo sft` makes from nothing.

    Returns:
        What to do next.

    Raises:
        ValueError: if the name of the folder is none of a Python module.
        FileExistsError: if the folder is there already.
    """
    name = folder.name
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"folder must have the name of a Python module, such as my_task, got {str(folder)!r}")
    if folder.exists():
        raise FileExistsError(f"folder must not exist yet, got {str(folder)!r}")
    texts = _texts(folder, kind, policy)
    folder.mkdir(parents=True)
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    return f"{folder}: {', '.join(texts)}\n\n{_commands(folder, policy)}"


def _texts(folder: Path, kind: Kind, policy: str | None) -> dict[str, str]:
    """The files of a task by their names."""
    tool = _TOOLS[kind]
    drawn = examples(kind, _NUM_TRAIN + _NUM_TEST + _NUM_DEMONSTRATIONS)
    train, test = drawn[:_NUM_TRAIN], drawn[_NUM_TRAIN : _NUM_TRAIN + _NUM_TEST]
    values = _values(folder, tool, policy)
    template, file = tool.file
    texts = {
        "README.md": _filled("README.md", values),
        "config.yaml": _filled("config.yaml", values),
        "train.jsonl": _lines(map(_question, train)),
        "test.jsonl": _lines(map(_question, test)),
        f"{folder.name}_reward.py": _filled("reward.py", values),
    }
    if file:
        texts[_fill(file, values)] = _filled(template, values)
    if kind == "search":
        texts["documents.jsonl"] = _lines({"title": each.title, "text": each.text} for each in documents())
    if policy is None:
        texts["sft.yaml"] = _filled("sft.yaml", values)
        texts["demonstrations.jsonl"] = _lines(
            _conversation(each, tool.tag) for each in drawn[_NUM_TRAIN + _NUM_TEST :]
        )
    texts[f"test_{folder.name}.py"] = _filled("test.py", values)
    return texts


def _values(folder: Path, tool: _Tool, policy: str | None) -> dict[str, str]:
    """What stands for the names in the templates, by name."""
    name = folder.name
    values = {"name": name, "folder": folder.as_posix(), "tag": tool.tag, "python": sys.executable}
    depth = len(folder.parts) - 1
    by_policy = _FOR_TINY if policy is None else _FOR_MODEL
    return values | {
        "usage": indent(_commands(folder, policy), "#   "),
        "commands": indent(_commands(folder, policy), "    ") + "\n",
        "about": tool.about,
        "extra": f' (needs `pip install "appo[{tool.extra}]"`)' if tool.extra else "",
        "tools": indent(_fill(tool.config, values), "    "),
        "tool_place": f"`{_fill(tool.file[1], values)}`" if tool.file[1] else "`rollout.tools` of `config.yaml`",
        "policy": policy or f"runs/{name}_sft/policy",
        "imports": _fill(tool.imports, values),
        "pytest": "import pytest\n" if "pytest." in tool.test else "",
        "tool_test": tool.test,
        "start": "FOLDER.anchor" if folder.is_absolute() else f"FOLDER.parents[{depth}]",
        **{key: _fill(value, values) for key, value in by_policy.items()},
    }


_FOR_TINY = {
    "lr": "5.0e-4",
    "lr_comment": "For a model of billions of parameters 1.0e-6.",
    "max_prompt_tokens": "64",
    "system_prompt": "",
    "syntax": (
        "  # The policy of sft.yaml knows the tool. Without this line prompts describe it, as another policy needs.\n"
        "  syntax: {class_path: TagSyntax, init_args: {instructions: null}}\n"
    ),
    "max_response_tokens": "96",
    "max_tool_calls": "2",
    "max_result_tokens": "32",
    "start_policy": (
        "    start = [f\"--model.policy={tmp_path / 'untrained'}\", f\"--model.save_to={tmp_path / 'start'}\"]\n"
        '    run(["sft", "--config", "{{folder}}/sft.yaml", "--trainer.max_steps=5", *start, *options])\n'
        "    options.append(f\"--model.policy={tmp_path / 'start'}\")\n"
    ),
    "policy_line": (
        "a tiny one that `sft.yaml` makes from nothing, good for this toy alone.\n"
        "  Name a model of yours in `config.yaml`, or begin with `appo new FOLDER --policy MODEL`."
    ),
}
"""Of a task whose policy is made from nothing."""

_FOR_MODEL = {
    "lr": "1.0e-6",
    "lr_comment": "For one of some hundred million parameters 1.0e-5.",
    "max_prompt_tokens": "1024",
    "system_prompt": (
        "  system_prompt: Think in <think></think>, call the tool, and put the final answer in \\boxed{}.\n"
    ),
    "syntax": "",
    "max_response_tokens": "1024",
    "max_tool_calls": "4",
    "max_result_tokens": "256",
    "start_policy": "",
    "policy_line": "a model of yours, `model.policy` in `config.yaml`.",
}
"""Of a task whose policy is a model with a chat template."""


def _commands(folder: Path, policy: str | None) -> str:
    """What a user types, a command a line."""
    name, path = folder.name, folder.as_posix()
    first = [f"appo sft --config {path}/sft.yaml"] if policy is None else []
    tested = f"appo test --config {path}/config.yaml --model.policy runs/{name}/policy"
    rest = [f"appo fit --config {path}/config.yaml", tested, f"appo view runs/{name}"]
    return "\n".join([*first, *rest])


def _question(example: Example) -> dict[str, str]:
    return {"question": example.question, "answer": example.answer}


def _conversation(example: Example, tag: str) -> dict[str, Any]:
    turns = (("user", example.question), ("assistant", example.response(tag)))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _filled(template: str, values: Mapping[str, str]) -> str:
    return _fill((_TEMPLATES / f"{template}.template").read_text(encoding="utf-8"), values)


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Puts values in the place of their names in double braces."""
    for name, value in values.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text
