"""The smallest JSON values of JSON schemas, for an engine without a model."""

from __future__ import annotations

import json
from typing import Any

from server.engine.base import UnsupportedRequestError

_SMALLEST: dict[str, Any] = {"string": "", "integer": 0, "number": 0, "boolean": False, "null": None}


def smallest_json(schema: str) -> str:
    """The smallest value that fits the schema, as JSON.

    Raises:
        UnsupportedRequestError: a schema of a kind that is not known here.
    """
    return json.dumps(_smallest(json.loads(schema)), separators=(",", ":"))


def _smallest(schema: Any) -> Any:
    if not isinstance(schema, dict):
        raise UnsupportedRequestError("response_format: the schema is no object.", param="response_format")
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        return {
            name: _smallest(properties.get(name, {"type": "null"})) for name in schema.get("required", ())
        }
    if kind == "array":
        return [_smallest(schema["items"])] * schema.get("minItems", 0)
    if kind not in _SMALLEST:
        raise UnsupportedRequestError(
            f"response_format: the type {kind!r} in the schema is not known.", param="response_format"
        )
    return _SMALLEST[kind]
