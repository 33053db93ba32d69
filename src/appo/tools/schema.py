"""Tools whose arguments a JSON schema describes."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from appo.tools.base import Tool, ToolArgumentError


class SchemaTool(Tool):
    """A tool with arguments by name, which are checked before it is called.

    In a call syntax that names no arguments, a tool with one text parameter takes the text as it is, any other a JSON
    object.

    Args:
        name: what the model writes to address the tool.
        description: what the tool does, in words for the model.
        parameters: JSON schema of the arguments, an object.
    """

    def __init__(self, name: str, description: str, parameters: Mapping[str, Any]) -> None:
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry

        self._name, self._description, self._parameters = name, description, parameters
        # An empty registry: a schema that refers to another one on the network does not get it.
        dialect = validator_for(parameters, default=Draft202012Validator)
        self._validator = dialect(parameters, registry=Registry())
        self._text_name = text_parameter(parameters)

    @abstractmethod
    def call(self, arguments: dict[str, Any]) -> str:
        """Answers one call, with arguments that fit the schema.

        Raises:
            ToolError: if the call failed for a reason the model should read.
        """

    @property
    def name(self) -> str:
        return self._name

    @property
    def description(self) -> str:
        return self._description

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self._parameters

    def to_text(self, arguments: Mapping[str, Any]) -> str:
        self._check(arguments)
        if self._text_name is not None and self._text_name in arguments:
            return str(arguments[self._text_name])
        return json.dumps(arguments, ensure_ascii=False)

    def __call__(self, argument: str) -> str:
        arguments = self._to_arguments(argument)
        self._check(arguments)
        return self.call(arguments)

    def _to_arguments(self, text: str) -> dict[str, Any]:
        if self._text_name is not None:
            return {self._text_name: text}
        try:
            arguments = json.loads(text or "{}")
        except (ValueError, RecursionError) as error:
            raise ToolArgumentError(f"Error: the arguments of {self.name} are no valid JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise ToolArgumentError(f"Error: the arguments of {self.name} must be a JSON object")
        return arguments

    def _check(self, arguments: Mapping[str, Any]) -> None:
        from jsonschema.exceptions import best_match

        if error := best_match(self._validator.iter_errors(dict(arguments))):
            place = "".join(f" {part!r}" for part in error.absolute_path)
            raise ToolArgumentError(
                f"Error: {self.name} does not take such arguments:{place and place + ':'} {error.message}"
            )


def text_parameter(parameters: Mapping[str, Any]) -> str | None:
    """The one parameter of a tool that takes a text and nothing else; None if it takes others.

    Args:
        parameters: JSON schema of the arguments, an object.
    """
    properties = parameters.get("properties", {})
    texts = [key for key, value in properties.items() if isinstance(value, Mapping) and value.get("type") == "string"]
    return texts[0] if len(properties) == len(texts) == 1 else None
