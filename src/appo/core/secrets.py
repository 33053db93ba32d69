"""Keys come from environment variables: ``{NAME}`` in an option stands for the variable of that name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_VARIABLE = re.compile(r"\{([A-Za-z_]\w*)\}")
_SECRET = re.compile("authorization|(auth|key|token)$|secret|cookie|password", re.IGNORECASE)


def refuse_secrets(values: Mapping[str, Any], option: str) -> None:
    """Refuses keys that stand in an option: it is saved with the configuration.

    Args:
        values: of the option; those whose names say so are secret.
        option: its name.

    Raises:
        ValueError: if there is one; it is not shown.
    """
    for name, value in values.items():
        if _SECRET.search(name) and isinstance(value, str) and not _VARIABLE.search(value):
            raise ValueError(
                f"{option}.{name} must take its value from an environment variable ({{NAME}}), got the value itself"
            )


def fill_in(template: Any, option: str) -> Any:
    """The template with ``{NAME}`` replaced by environment variables, at any depth.

    Raises:
        ValueError: if one of them is not set, or empty.
    """
    if isinstance(template, Mapping):
        return {key: fill_in(value, option) for key, value in template.items()}
    if isinstance(template, list):
        return [fill_in(value, option) for value in template]
    if not isinstance(template, str):
        return template
    if missing := [name for name in _VARIABLE.findall(template) if not os.environ.get(name)]:
        raise ValueError(f"{option} must name environment variables that are set, got {{{missing[0]}}}, which is not")
    # Files of keys end with a line break, which no header may hold.
    return _VARIABLE.sub(lambda match: os.environ[match[1]].strip(), template)


def without_secrets(text: str, templates: Mapping[str, str]) -> str:
    """A text, such as what a server answered, with ``***`` for the variables that the templates name."""
    for value in _named_values(templates):
        text = text.replace(value, "***")
    return text


def _named_values(templates: Mapping[str, str]) -> Iterator[str]:
    for template in templates.values():
        for name in _VARIABLE.findall(template):
            if value := os.environ.get(name, "").strip():
                yield value
