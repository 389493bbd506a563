"""A small client of the HTTP API, as the command line and the demo use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from km_registry.errors import KMError
from server.client_access import AccessCalls


class ClientError(KMError):
    """The server refused, or could not be reached."""

    def __init__(self, message: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a document's stream."""

    kind: str
    data: dict[str, Any]


class Client(AccessCalls):
    """Talks to one server with one API key.

    Every method raises ClientError, with the HTTP status when there was one.
    """

    def __init__(self, url: str, api_key: str, *, timeout_s: float = 300.0) -> None:
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(timeout_s, connect=10.0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def add(self, title: str, text: str, *, recipe: dict[str, Any] | None = None) -> dict[str, Any]:
        """Upload a document; {document, job}."""
        return self._json("POST", "/documents", json=_sent(title=title, text=text, recipe=recipe))

    def add_file(
        self, file: Path, *, title: str | None = None, recipe: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Upload a file of a type that the server takes; {document, job}. OSError when it cannot be read."""
        return self._json("POST", "/documents", **_form(file, title, recipe))

    def update_file(
        self,
        document_id: str,
        file: Path,
        *,
        title: str | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Give a document a new version from a file; {document, job, created}."""
        return self._json("PUT", f"/documents/{document_id}", **_form(file, title, recipe))

    def update(
        self,
        document_id: str,
        text: str,
        *,
        title: str | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Give a document a new version; {document, job, created}."""
        body = _sent(text=text, title=title, recipe=recipe)
        return self._json("PUT", f"/documents/{document_id}", json=body)

    def train(self, document_id: str, *, recipe: dict[str, Any] | None = None) -> dict[str, Any]:
        """Train a document again, with this recipe or after a failure; {job}."""
        return self._json("POST", f"/documents/{document_id}/train", json=_sent(recipe=recipe))

    def recipes(self) -> dict[str, Any]:
        """What an upload may ask of its training: {presets, json_schema, limits}."""
        return self._json("GET", "/recipes")

    def documents(self, before: str | None = None) -> dict[str, Any]:
        """Your documents, newest first; those older than `before`."""
        return self._json("GET", "/documents", params=_sent(before=before))

    def all_documents(self) -> Iterator[dict[str, Any]]:
        """Every document of yours, newest first, page after page."""
        before = None
        while True:
            page = self.documents(before)
            yield from page["documents"]
            before = page["next_before"]
            if before is None:
                return

    def document(self, document_id: str) -> dict[str, Any]:
        """One document with its job."""
        return self._json("GET", f"/documents/{document_id}")

    def answer(self, document_id: str, question: str, **options: Any) -> dict[str, Any]:
        """Ask a document; options are mode, ke, k, max_tokens, temperature, seed."""
        return self._json(
            "POST", "/answer", json={"document_id": document_id, "question": question, **options}
        )

    def answer_stream(self, document_id: str, question: str, **options: Any) -> Iterator[ServerEvent]:
        """Ask a document, piece by piece: `delta` events with {text}, then one `answer` with all that
        `answer` returns. ClientError also when it is cut short."""
        body = {"document_id": document_id, "question": question, "stream": True, **options}
        for event in self._events("POST", "/answer", json=body):
            if event.kind == "error":
                raise ClientError(event.data["error"]["message"])
            yield event

    def delete(self, document_id: str) -> dict[str, Any]:
        """Delete a document and everything made of it; the receipt."""
        return self._json("DELETE", f"/documents/{document_id}")

    def delete_km(self, document_id: str) -> dict[str, Any]:
        """Delete a document's KM, and keep the document; the receipt."""
        return self._json("DELETE", f"/documents/{document_id}/km")

    def delete_version(self, document_id: str, version: int) -> dict[str, Any]:
        """Delete a former version of a document; the receipt."""
        return self._json("DELETE", f"/documents/{document_id}/versions/{version}")

    def kes(self) -> list[dict[str, Any]]:
        """The KEs that are registered, by name, newest version first."""
        found: list[dict[str, Any]] = self._json("GET", "/kes")["kes"]
        return found

    def register_ke(self, directory: str, *, default: bool = False) -> dict[str, Any]:
        """Register the KE in a directory on the server; {ke, created, warning}."""
        return self._json("POST", "/kes", json={"directory": directory, "default": default})

    def set_default_ke(self, ke_id: str) -> dict[str, Any]:
        """Make a KE the default for its base model; the KE."""
        return self._json("PUT", f"/kes/{ke_id}/default")

    def delete_ke(self, ke_id: str) -> dict[str, Any]:
        """Delete a KE and every composite made of it; {ke_id, purged}."""
        return self._json("DELETE", f"/kes/{ke_id}")

    def events(self, document_id: str) -> Iterator[ServerEvent]:
        """What has happened to the document's job, then what happens, until the job is finished."""
        # No timeout for reading: a job may be silent while it waits for its turn.
        timeout = httpx.Timeout(10.0, read=None)
        return self._events("GET", f"/documents/{document_id}/events", timeout=timeout)

    def _events(self, method: str, path: str, **options: Any) -> Iterator[ServerEvent]:
        try:
            with self._http.stream(method, path, **options) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                yield from read_events(response.iter_lines())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _json(self, method: str, path: str, /, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _refusal(response)
        body: dict[str, Any] = response.json() if response.content else {}
        return body

    def _unreachable(self, error: httpx.TransportError) -> ClientError:
        return ClientError(
            f"No answer from {self._http.base_url} ({error}). Start it with `km serve`, or set KM_URL."
        )


def _sent(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def _form(file: Path, title: str | None, recipe: dict[str, Any] | None) -> dict[str, Any]:
    """The body of an upload as a form."""
    fields = _sent(title=title, recipe=None if recipe is None else json.dumps(recipe))
    return {"files": {"file": (file.name, file.read_bytes())}, "data": fields}


def _refusal(response: httpx.Response) -> ClientError:
    try:
        body = response.json()
    except ValueError:
        body = {}
    error = body.get("error") or body.get("detail") or response.reason_phrase
    message = error.get("message", "") if isinstance(error, dict) else error
    return ClientError(f"{message} (HTTP {response.status_code})", response.status_code)


class EventReader:
    """Reads a text/event-stream line by line; comments (pings) and unknown fields are ignored, as it
    demands."""

    def __init__(self) -> None:
        self._kind = "message"
        self._data: list[str] = []

    def feed(self, line: str) -> ServerEvent | None:
        """The event that this line ends, if it ends one."""
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._kind = value
        elif field == "data":
            self._data.append(value)
        elif not line and self._data:
            event = ServerEvent(self._kind, json.loads("\n".join(self._data)))
            self._kind, self._data = "message", []
            return event
        return None


def read_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """The events of a text/event-stream."""
    reader = EventReader()
    return (event for line in lines if (event := reader.feed(line)))
