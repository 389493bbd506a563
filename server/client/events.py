"""Reading server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from server.client.errors import ClientError
from server.client.types import Answer


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream. `id` is what to go on after, where it has one."""

    kind: str
    data: dict[str, Any]
    id: str | None = field(default=None, compare=False)


class EventReader:
    """Reads a text/event-stream line by line; comments (pings) and unknown fields are ignored, as it
    demands."""

    def __init__(self) -> None:
        self._kind = "message"
        self._id: str | None = None
        self._data: list[str] = []

    def feed(self, line: str) -> ServerEvent | None:
        """The event that this line ends, if it ends one."""
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "id":
            self._id = value
        elif name == "data":
            self._data.append(value)
        elif not line and self._data:
            event = ServerEvent(self._kind, json.loads("\n".join(self._data)), self._id)
            self._kind, self._data = "message", []
            return event
        return None


def read_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """The events of a text/event-stream."""
    reader = EventReader()
    return (event for line in lines if (event := reader.feed(line)))


class AnswerPieces:
    """Takes the events of an answer that is streamed; `answer` is the whole of it once it is there."""

    def __init__(self) -> None:
        self.answer: Answer | None = None

    def take(self, event: ServerEvent) -> str:
        """The text that this event adds. ClientError when it says that the answer broke off."""
        if event.kind == "error":
            error = event.data["error"]
            raise ClientError(error["message"], code=error.get("code"))
        if event.kind == "answer":
            self.answer = event.data  # type: ignore[assignment]  # as the server's schema has it
            return ""
        return str(event.data.get("text", ""))

    def whole(self) -> Answer:
        """The answer. ClientError when the stream ended without it."""
        if self.answer is None:
            raise ClientError("The answer was cut short. Ask again.")
        return self.answer
