"""Every call of the HTTP API, once: what is sent, and what of the answer is wanted. No input or output."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx

T = TypeVar("T")

#: No limit for reading: a job may be silent while it waits for its turn.
_PATIENT = httpx.Timeout(10.0, read=None)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request and what is wanted of its answer, of which the caller knows the type.

    `repeatable`: done twice it does no more than once. `raw`: the answer is bytes, not JSON.
    """

    method: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pick: Callable[[Any], T] = lambda body: body
    repeatable: bool = True
    raw: bool = False


def get(path: str, pick: Callable[[Any], T] = lambda body: body, **params: Any) -> Call[T]:
    """Look something up; parameters without a value are left out."""
    return Call("GET", path, {"params": given(**params)} if params else {}, pick)


def post(path: str, *, repeatable: bool = False, **body: Any) -> Call[T]:
    """Have something made; fields without a value are left out."""
    return Call("POST", path, {"json": given(**body)}, repeatable=repeatable)


def delete(path: str) -> Call[T]:
    """Have something removed. Its receipt is given once, so it is not asked for blindly again."""
    return Call("DELETE", path, repeatable=False)


def upload(document_id: str | None, **fields: Any) -> Call[T]:
    """A new document, or a new version of one, as text. The same text again changes nothing."""
    method, path = ("POST", "/documents") if document_id is None else ("PUT", f"/documents/{document_id}")
    return Call(method, path, {"json": given(**fields)})


def upload_file(
    document_id: str | None, name: str, content: bytes, title: str | None, recipe: dict[str, Any] | None
) -> Call[T]:
    """A new document, or a new version of one, as a file."""
    fields = given(title=title, recipe=None if recipe is None else json.dumps(recipe))
    type_ = mimetypes.guess_type(name)[0] or "application/octet-stream"
    method, path = ("POST", "/documents") if document_id is None else ("PUT", f"/documents/{document_id}")
    return Call(method, path, {"files": {"file": (name, content, type_)}, "data": fields})


def ask(document_id: str, question: str, *, stream: bool = False, **options: Any) -> Call[T]:
    """A question to a document."""
    streamed = {"stream": True} if stream else {}
    body = {"document_id": document_id, "question": question, **streamed, **given(**options)}
    return Call("POST", "/answer", {"json": body})


def events(document_id: str, after: str | None) -> Call[Any]:
    """The document's events after that one."""
    headers = {} if after is None else {"Last-Event-ID": after}
    return Call("GET", f"/documents/{document_id}/events", {"headers": headers, "timeout": _PATIENT})


def export(document_id: str, *, text: bool) -> Call[bytes]:
    """The document's KM as a ZIP."""
    params = {"text": "true"} if text else {}
    return Call("GET", f"/documents/{document_id}/km", {"params": params}, raw=True)


def import_km(content: bytes, title: str | None) -> Call[T]:
    """A ZIP that was exported, as a new document."""
    form = {"files": {"file": ("km.zip", content, "application/zip")}, "data": given(title=title)}
    return Call("POST", "/documents/import", form, repeatable=False)


def share(document_id: str, user: str | None, group: str | None, role: str) -> Call[T]:
    """A role for a user or a group."""
    wanted = {"user": user} if group is None else {"group": group}
    return Call("POST", f"/documents/{document_id}/grants", {"json": wanted | {"role": role}})


def file_of(file: Path) -> tuple[str, bytes]:
    """Name and content. OSError when it cannot be read."""
    return file.name, file.read_bytes()


def given(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def picking(name: str) -> Callable[[Any], Any]:
    """Of an answer, this field."""
    return lambda body: body[name]
