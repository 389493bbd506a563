"""What an attempt leaves in the trace of the request that had it queued."""

from __future__ import annotations

import threading

from km_registry.tracing import NO_SPAN, Span


class AttemptTrace:
    """The span of an attempt, and within it that of the stage it is in. Thread-safe; whoever is first ends
    it, and after that nothing begins any more."""

    def __init__(self, span: Span = NO_SPAN) -> None:
        self._span = span
        self._stage = NO_SPAN
        self._lock = threading.Lock()
        self._ended = False

    @property
    def traceparent(self) -> str | None:
        """The W3C header by which another process continues the present stage."""
        return self._stage.traceparent

    def stage(self, name: str) -> None:
        """The next stage begins."""
        with self._lock:
            self._stage.end()
            if not self._ended:
                self._stage = self._span.child(name)

    def fail(self, error: Exception) -> None:
        """What the attempt will end by. Only its kind is kept: the message may quote the document."""
        kind = type(error).__name__
        self._stage.fail(kind)
        self._span.fail(kind)

    def end(self, outcome: str) -> None:
        """The attempt is over, in this way."""
        with self._lock:
            self._ended = True
            self._stage.end()
            self._span.set(outcome=outcome)
            self._span.end()
