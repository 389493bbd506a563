"""The reference of the HTTP API as Markdown, made of its OpenAPI description: `make docs`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

_HEAD = """\
# HTTP API

Made by `make docs` of the OpenAPI description (`GET /openapi.json`); do not edit.

"""
_METHODS = ("get", "post", "put", "delete")


def reference(description: Mapping[str, Any]) -> str:
    """The whole reference: one section for each tag, one for each operation in it."""
    return _HEAD + "\n".join(_lines(description)).rstrip() + "\n"


def _lines(description: Mapping[str, Any]) -> Iterator[str]:
    yield description["info"]["description"].strip()
    for tag in description["tags"]:
        yield f"\n## {tag['name']}\n\n{tag['description']}"
        for path, item in description["paths"].items():
            for method in _METHODS:
                operation = item.get(method)
                if operation is not None and tag["name"] in operation["tags"]:
                    yield from _operation(description, f"{method.upper()} {path}", operation)
    yield "\n## Objects"
    for name, schema in sorted(description["components"]["schemas"].items()):
        if not name.startswith(("HTTPValidationError", "ValidationError")):
            yield from _object(name, schema)


def _operation(description: Mapping[str, Any], title: str, operation: Mapping[str, Any]) -> Iterator[str]:
    open_to_all = "" if operation.get("security") else " No key is needed."
    yield f"\n### `{title}`\n\n{operation['summary']}. {_text(operation.get('description', ''))}{open_to_all}"
    if parameters := operation.get("parameters"):
        yield "\n| parameter | in | |\n|---|---|---|"
        for one in parameters:
            told = _cell(_type(one["schema"]), one.get("description") or one["schema"].get("description"))
            yield f"| `{one['name']}`{_required(one.get('required'))} | {one['in']} | {told} |"
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield from _body(description, media, content["schema"])
    yield "\nAnswers: " + "; ".join(_answers(operation["responses"])) + "."


def _body(description: Mapping[str, Any], media: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"\nBody, `{media}`: {_type(schema)}"
    if "$ref" not in schema and "properties" in schema:
        yield from _fields(schema)
    example = _resolved(description, schema).get("examples")
    if example:
        yield f"\n```json\n{json.dumps(example[0], indent=2, ensure_ascii=False)}\n```"


def _answers(responses: Mapping[str, Any]) -> Iterator[str]:
    for status, response in sorted(responses.items()):
        types = [
            _type(content["schema"])
            for content in response.get("content", {}).values()
            if content.get("schema") not in (None, {}) and not status.startswith(("4", "5"))
        ]
        what = f" {types[0]}" if types else ""
        said = "" if response["description"] == "Successful Response" else f" ({response['description']})"
        yield f"{status}{what}{said}"


def _object(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n### {name}\n\n{_text(schema.get('description', ''))}"
    if values := schema.get("enum"):
        yield "\nOne of " + ", ".join(f"`{value}`" for value in values) + "."
    if "properties" in schema:
        yield from _fields(schema)


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    yield "\n| field | |\n|---|---|"
    for name, field in schema["properties"].items():
        needed = _required(name in schema.get("required", ()))
        yield f"| `{name}`{needed} | {_cell(_type(field), field.get('description'), field)} |"


def _cell(type_: str, description: str | None, field: Mapping[str, Any] | None = None) -> str:
    default = (field or {}).get("default")
    shown = "" if default in (None, [], {}) else f" (`{json.dumps(default)}`)"
    return f"{type_}{shown}. {_text(description or '')}".replace("|", "\\|").rstrip(" .") + "."


def _required(needed: bool | None) -> str:
    return " (required)" if needed else ""


def _type(schema: Mapping[str, Any]) -> str:
    if reference_ := schema.get("$ref"):
        name = reference_.rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if options := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return " or ".join(dict.fromkeys(_type(one) for one in options))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if values := schema.get("enum"):
        return " or ".join(f"`{value}`" for value in values)
    if "const" in schema:
        return f"`{schema['const']}`"
    type_ = schema.get("type", "anything")
    return " or ".join(type_) if isinstance(type_, list) else str(type_)


def _resolved(description: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    found: Mapping[str, Any] = description["components"]["schemas"].get(name, schema)
    return found


def _text(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def main() -> None:
    """Print the reference."""
    from server.app import description

    sys.stdout.write(reference(description()))


if __name__ == "__main__":
    main()
