"""Traces: what one request did, in every process, for an OpenTelemetry collector that the operator names.

A span says what was done, how long it took and on which ids: never a text, a title, a question, a key or a
file's name, and of an error only its kind, since messages quote. Without a collector nothing is imported, and
a span costs a look at a variable. The spans are handed on by our own context variable, not by OpenTelemetry's
global provider: libraries that know that one would add spans whose content nobody here has decided.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from opentelemetry import trace as otel
    from opentelemetry.context import Context

Kind = Literal["internal", "server", "consumer"]
Value = str | int | float | bool | None


class Span:
    """Something that takes time; this one is not recorded. It begins when it is made and is over at `end`, or
    with its `with` block, within which `span` makes its children. The block is one task's or thread's own;
    everything else may be called by any thread, and `end` more than once.

    Attributes without a dot in their name get the prefix `km.`; those that are None are left out.
    """

    __slots__ = ()

    def child(self, name: str, **attributes: Value) -> Span:  # noqa: ARG002  nothing is recorded
        """A part of it, which begins now."""
        return self

    def set(self, **attributes: Value) -> None:
        """Say more of it."""

    def rename(self, name: str) -> None:
        """Name it, once that is known."""

    def fail(self, kind: str) -> None:
        """It went wrong, in this way: a word of ours, or an exception's type."""

    def end(self, error: BaseException | None = None) -> None:
        """It is over; by the error, if there is one."""

    @property
    def traceparent(self) -> str | None:
        """The W3C header by which another process continues it; None when it is not recorded."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(error)


NO_SPAN = Span()
_here: ContextVar[Span] = ContextVar("km_span", default=NO_SPAN)


def span(name: str, **attributes: Value) -> Span:
    """A part of what is being traced here, which begins now; nothing where nothing is traced."""
    return _here.get().child(name, **attributes)


def traceparent() -> str | None:
    """The W3C header that continues what is being traced here; None where nothing is."""
    return _here.get().traceparent


class _Recorded(Span):
    """A span that goes to the collector, unless its trace was not sampled."""

    __slots__ = ("_before", "_recorded", "_tracer")

    def __init__(self, tracer: otel.Tracer, recorded: otel.Span) -> None:
        self._tracer = tracer
        self._recorded = recorded
        self._before: Token[Span] | None = None

    def child(self, name: str, **attributes: Value) -> Span:
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        return _begun(
            self._tracer, name, set_span_in_context(self._recorded, Context()), "internal", attributes
        )

    def set(self, **attributes: Value) -> None:
        if self._recorded.is_recording():
            self._recorded.set_attributes(_plain(attributes))

    def rename(self, name: str) -> None:
        if self._recorded.is_recording():
            self._recorded.update_name(name)

    def fail(self, kind: str) -> None:
        from opentelemetry.trace import StatusCode

        self.set(**{"error.type": kind})
        if self._recorded.is_recording():
            self._recorded.set_status(StatusCode.ERROR)

    def end(self, error: BaseException | None = None) -> None:
        if not self._recorded.is_recording():
            return
        if isinstance(error, Exception):
            self.fail(type(error).__name__)
        elif error is not None:
            # Cancelled, or its process is told to stop: nothing went wrong.
            self.set(cut_short=True)
        self._recorded.end()

    @property
    def traceparent(self) -> str | None:
        from opentelemetry.trace import format_span_id, format_trace_id

        found = self._recorded.get_span_context()
        if not found.is_valid:
            return None
        ids = f"{format_trace_id(found.trace_id)}-{format_span_id(found.span_id)}"
        return f"00-{ids}-{found.trace_flags:02x}"

    def __enter__(self) -> Self:
        self._before = _here.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._before is not None
        _here.reset(self._before)
        self.end(error)


class Tracing:
    """Where the traces of one process go. `Tracing()` records nothing."""

    def __init__(self, tracer: otel.Tracer | None = None, close: Callable[[], None] = lambda: None) -> None:
        self._tracer = tracer
        self._close = close

    @classmethod
    def to(cls, endpoint: str | None, service: str) -> Tracing:
        """Send what the service does to a collector, as OTLP over HTTP, from a thread of its own. Without an
        endpoint nothing is recorded. One that cannot be reached costs its traces only."""
        if endpoint is None:
            return cls()
        from km_registry.trace_export import tracer_to

        return cls(*tracer_to(endpoint, service))

    @property
    def is_on(self) -> bool:
        """Whether anything is recorded."""
        return self._tracer is not None

    def begin(
        self, name: str, traceparent: str | None = None, *, kind: Kind = "internal", **attributes: Value
    ) -> Span:
        """A span that continues the trace of this W3C header; without a good one it begins a trace."""
        if self._tracer is None:
            return NO_SPAN
        return _begun(self._tracer, name, _context_of(traceparent), kind, attributes)

    def close(self) -> None:
        """Send what has ended, for a moment at most. Spans that end later are lost. Blocking; idempotent."""
        self._close()


def _begun(
    tracer: otel.Tracer, name: str, context: Context, kind: Kind, attributes: dict[str, Value]
) -> _Recorded:
    from opentelemetry.trace import SpanKind

    found = tracer.start_span(name, context, SpanKind[kind.upper()], _plain(attributes))
    return _Recorded(tracer, found)


def _context_of(traceparent: str | None) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    # Of the two headers this one alone: `tracestate` is any text of the client's, and would be exported.
    carrier = {"traceparent": traceparent} if traceparent else {}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _plain(attributes: dict[str, Value]) -> dict[str, str | int | float | bool]:
    return {
        name if "." in name else f"km.{name}": value
        for name, value in attributes.items()
        if value is not None
    }
