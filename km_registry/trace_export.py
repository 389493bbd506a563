"""How spans reach a collector. Imported by `tracing`, when a collector is named: the one place that imports
OpenTelemetry's SDK."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Tracer

_log = structlog.get_logger(__name__)

#: Longest wait for a collector when a process stops, in seconds.
_CLOSE_S = 1.0


class _Telling(SpanExporter):
    """Says once that traces do not arrive, and once that they do again, where the library says it at every
    batch."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._arrive = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them, or lose them."""
        result = self._exporter.export(spans)
        arrive = result is SpanExportResult.SUCCESS
        if arrive != self._arrive:
            self._arrive = arrive
            if arrive:
                _log.info("traces arrive again", endpoint=self._endpoint)
            else:
                _log.warning("traces do not arrive; nothing else is concerned", endpoint=self._endpoint)
        return result

    def shutdown(self) -> None:
        """End waiting for the collector."""
        self._exporter.shutdown()


def tracer_to(endpoint: str, service: str) -> tuple[Tracer, Callable[[], None]]:
    """A tracer whose spans go to `endpoint`/v1/traces in batches, and what sends the rest and ends it."""
    # Its errors at every batch; we say what matters.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = _Telling(OTLPSpanExporter(f"{endpoint}/v1/traces"), endpoint)
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))

    def close() -> None:
        # The library would wait half a minute for a collector that is away. A daemon, and not waited for
        # longer: a process that is told to stop must.
        sending = threading.Thread(target=provider.shutdown, name="last traces", daemon=True)
        sending.start()
        sending.join(_CLOSE_S)
        if sending.is_alive():
            exporter.shutdown()

    return provider.get_tracer("km_server"), close
