"""Adds to the site what is generated: options, the API reference, and pages that stand outside of ``docs/``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from notebook_pages import notebook_page
from reference import (
    KEYS,
    PUBLIC,
    SECTIONS,
    SFT_SECTIONS,
    components,
    load_package,
    options_of,
    public_names,
    registries,
    target,
    undocumented,
)

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"

OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security_policy.md",
}
"""Pages of the repository's root, and where the site has them."""

PLURALS = {
    "SCORERS": "scorers",
    "ADVANTAGES": "advantages",
    "LOSSES": "losses",
    "REWARDS": "rewards",
    "TOOLS": "tools",
    "CALL_SYNTAXES": "call syntaxes",
    "SEARCH_BACKENDS": "search back ends",
    "ENGINES": "engines",
    "PROMPT_SOURCES": "prompt sources",
    "CONVERSATION_SOURCES": "conversation sources",
}

ELSEWHERE = {("appo", "RolloutCallback"), ("appo.scorers", "BatchContext")}
"""Names that the API reference has on another page or in another section, too."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and the files of the repository that pages link to."""
    package = load_package()
    names = public_names(package, [module for modules in PUBLIC.values() for module in modules])
    if missing := undocumented(package, names):
        raise PluginError("public names without documentation: " + ", ".join(missing))
    pages: dict[str, str | bytes] = {f"options/{name}.md": text for name, text in option_pages(package)}
    pages |= {f"api/{name}.md": text for name, text in api_pages(package, names)}
    pages |= {page: from_root((ROOT / name).read_text(encoding="utf-8")) for name, page in OUTSIDE.items()}
    pages |= {f"notebooks/{name}": content for name, content in notebook_files()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for path in sorted(linked_files()):
        files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links that leave ``docs/`` to where the site has what they lead to."""
    depth = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({depth}\.\./([\w./-]+)", lambda link: f"]({depth}{place(link[1])}", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keeps the name of a flag in one line: a browser would break behind its hyphens."""
    return re.sub(
        r"<code>([^<]*--[^<]*)</code>",
        lambda found: re.sub(r"(--[\w-]+)", r'<span class="flag">\1</span>', found[0]),
        html,
    )


def from_root(text: str) -> str:
    """A page of the root as one of ``docs/``: links to that folder lose its name."""
    return re.sub(r"\]\((?!https?:|#|mailto:)([\w./-]+)", lambda link: f"]({place(link[1])}", text)


def place(path: str) -> str:
    """Where the site has a file of the repository; a notebook is read there as a page."""
    if path.startswith("notebooks/"):
        return path.removesuffix(".ipynb") + ".md"
    return path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE.get(path, f"repository/{path}")


def linked_files() -> set[str]:
    """Files outside of ``docs/`` that pages link to."""
    found = set()
    for page in [*(ROOT / "docs").glob("**/*.md"), *(ROOT / name for name in OUTSIDE)]:
        links = re.findall(r"\]\((?!https?:|#|mailto:)([\w./-]+)", page.read_text(encoding="utf-8"))
        found |= {(page.parent / link).resolve() for link in links}
    paths = {file.relative_to(ROOT).as_posix() for file in found if file.is_file() and file.is_relative_to(ROOT)}
    paths |= {notebook.relative_to(ROOT).as_posix() for notebook in NOTEBOOKS.glob("*.ipynb")}
    return {path for path in paths if not path.startswith("docs/")} - set(OUTSIDE)


def notebook_files() -> Iterator[tuple[str, str | bytes]]:
    """Pages of the notebooks, and their pictures."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, pictures = notebook_page(path)
        yield f"{path.stem}.md", text
        yield from pictures.items()


def option_pages(package: griffe.Module) -> Iterator[tuple[str, str]]:
    """Name and text of the pages of the options reference."""
    yield "run", "\n\n".join(run_sections(package))
    known = registries(package)
    for registry, classes in components(package).items():
        kind, group = known[registry]
        plural = PLURALS[registry]
        key = KEYS[registry]
        whose = " of `appo sft`" if registry == "CONVERSATION_SOURCES" else ""
        a = "an" if kind[0] in "aeiou" else "a"
        parts = [
            f"# Options of {plural}",
            f"`{key}`{whose} takes {a} {kind}, by name. "
            f"An entry point of the group `{group}` adds one of another package.",
        ]
        for cls in classes:
            parts += [f"## {cls.name} {{ #{cls.path} }}", *described(cls)]
        yield plural.replace(" ", "_"), "\n\n".join(parts)


def run_sections(package: griffe.Module) -> Iterator[str]:
    """The page of the options that belong to no component."""
    yield "# Options of a run"
    yield (
        "A config has these sections beside `trainer`, whose options are Lightning's ([what each does "
        "here](../trainer_options.md)). On the command line, `--rollout.scorer.help=BranchingScore` explains the "
        "options of a component that a key names."
    )
    for key, path in SECTIONS.items():
        cls = target(package[path])
        assert isinstance(cls, griffe.Class)
        yield f"## `{key}`"
        yield from described(cls)
    for key, path in SFT_SECTIONS.items():
        cls = target(package[path])
        assert isinstance(cls, griffe.Class)
        yield f"## `{key}` of `appo sft`"
        yield from described(cls)


def described(cls: griffe.Class) -> Iterator[str]:
    """What a docstring says without its arguments, and the table of options."""
    for section in cls.docstring.parsed if cls.docstring else []:
        if section.kind is griffe.DocstringSectionKind.text:
            yield section.value
    rows = options_of(cls)
    if not rows:
        yield "*It has no options.*"
        return
    lines = ["| option | default | |", "|---|---|---|"]
    for name, kind, default, text in rows:
        option = f"{code(name)}<br><small>{code(kind)}</small>" if kind else code(name)
        lines.append(f"| {option} | {code(default) or '*must be given*'} | {one_line(text)} |")
    # The stylesheet makes blocks of the rows where a window is narrow.
    yield '<div class="options" markdown>\n\n' + "\n".join(lines) + "\n\n</div>"


def code(text: str) -> str:
    """A cell in code: nothing for nothing."""
    return f"<code>{escape(text).replace('|', '&#124;')}</code>" if text else ""


def one_line(text: str) -> str:
    """A cell of prose."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text[:1].upper() + text[1:]


def api_pages(package: griffe.Module, names: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Name and text of the pages of the API reference."""
    registered = {cls.path: kind for kind, classes in components(package).items() for cls in classes}
    for title, modules in PUBLIC.items():
        parts = [f"# {title}"]
        for module in modules:
            obj = package if module == package.path else package[module.removeprefix(f"{package.path}.")]
            parts += [f"## `{module}`", obj.docstring.value if obj.docstring else ""]
            plain, listed = [], []
            for name in names[module]:
                path = target(package[f"{module}.{name}".removeprefix(f"{package.path}.")]).path
                (listed if path in registered else plain).append((name, path))
            if listed:
                links = [
                    f"[`{name}`](../options/{PLURALS[registered[path]].replace(' ', '_')}.md#{path})"
                    for name, path in listed
                ]
                parts.append("Components, with their options: " + ", ".join(links) + ".")
            parts += [f"::: {module}.{name}" for name, _ in plain if (module, name) not in ELSEWHERE]
        yield title.lower().replace(" ", "_"), "\n\n".join(parts)
