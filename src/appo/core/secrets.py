"""Keys come from environment variables: ``{NAME}`` in an option stands for the variable of that name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_VARIABLE = re.compile(r"\{([A-Za-z_]\w*)\}")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = frozenset(
    {"apikey", "authorization", "bearer", "cookie", "credential", "credentials", "jwt", "passcode", "passphrase"}
    | {"passwd", "password", "pwd", "secret", "secrets", "signature", "xauth"}
)
"""Name a secret wherever they stand in a name."""
_SECRET_ENDS = frozenset(
    {"auth", "key", "keys", "otp", "pass", "pat", "pin", "pw", "session", "sessionid", "sid", "sig", "token"}
)
"""Name one at the end of a name: a `token` is secret, `token_limit` is not."""
_DESCRIPTIONS = frozenset({"type", "scheme", "kind", "name", "in", "user", "username"})
"""What may stand in the open beside a secret."""
_LOOKS_SECRET = re.compile(
    r"(?i:bearer|basic|token)\s+\S{6,}|(?:sk|pk|rk|ghp|gho|ghs|github_pat|glpat|hf|xox[abp]|tvly|gsk|AIza|AKIA)[-_]?\w{12,}"
    r"|eyJ[\w-]+\.[\w-]+\..+|-----BEGIN [A-Z ]*PRIVATE KEY"
)
"""What keys of services begin with."""

_ADDRESS = re.compile(r"\s*[A-Za-z][\w+.-]*://")
_HEADER_NAME = re.compile(r"[\w-]+")
"""Of a header that stands in one text with its value: ``Authorization: ...``."""


def refuse_secrets(values: Any, option: str) -> None:
    """Refuses keys that stand in an option: it is saved with the configuration.

    Args:
        values: of the option, at any depth; those whose names say so, or that look like keys, are secret.
        option: its name.

    Raises:
        ValueError: if there is one; it is not shown.
    """
    for path, value, is_secret in _leaves(values, option, is_secret=False):
        text = value if isinstance(value, str) else str(value) if _is_number(value) and is_secret else ""
        if not is_secret and _ADDRESS.match(text):
            refuse_secrets_in_url(text, path)
        name, _, rest = text.partition(":")
        is_secret = is_secret or bool(_HEADER_NAME.fullmatch(name.strip()) and rest.strip() and _is_secret(name))
        if text and not _VARIABLE.search(text) and (is_secret or _LOOKS_SECRET.match(text.strip())):
            raise ValueError(
                f"{path} must take its value from an environment variable ({{NAME}}), got the value itself"
            )


def refuse_secrets_in_url(url: str, option: str) -> None:
    """Refuses an address with a user, a password or a query, which are where keys are put: nothing hides them there.

    Args:
        url: the address.
        option: its name.

    Raises:
        ValueError: if it has one; it is not shown.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError(f"{option} must have no user and no password, which belong into headers")
    if parts.query:
        refuse_secrets(dict(parse_qsl(parts.query)), option)


def refuse_secrets_in_arguments(arguments: Sequence[str], option: str) -> None:
    """Refuses keys among the arguments of a program.

    Args:
        arguments: program and arguments, such as ``["server", "--api-key", "..."]``.
        option: their name.

    Raises:
        ValueError: if there is one; it is not shown.
    """
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = argument.partition("=")
        if argument.startswith("-") and (equals or not following.startswith("-")):
            refuse_secrets({name.lstrip("-"): value if equals else following}, option)
        elif equals and name.isidentifier():
            refuse_secrets({name: value}, option)
        else:
            refuse_secrets([argument], option)


def _leaves(value: Any, path: str, is_secret: bool) -> Iterator[tuple[str, Any, bool]]:
    """Every value at any depth, where it stands, and whether a name on the way says that it is secret."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            text = str(name)
            below = _is_secret(text) or (is_secret and text.lower() not in _DESCRIPTIONS)
            yield from _leaves(item, f"{path}.{text}", below)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, path, is_secret)
    else:
        yield path, value, is_secret


def _is_secret(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    return bool(words) and (words[-1] in _SECRET_ENDS or not _SECRET_WORDS.isdisjoint(words))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
