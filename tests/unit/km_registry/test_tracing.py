"""Spans as a collector gets them, and what there is without one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from km_registry.config import RegistrySettings
from km_registry.tracing import NO_SPAN, Tracing, span, traceparent
from tests.otlp import Collector, collecting

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENTS = f"00-{TRACE}-{PARENT}-01"
SECRET = "Quillfeather"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


def test_spans_nest_and_continue_the_trace_of_the_header(collector: Collector) -> None:
    with closing(Tracing.to(collector.endpoint, "km-test")) as tracing:
        with tracing.begin("outer", CLIENTS, kind="server", request_id="req_1", user_id=None) as outer:
            outer.rename("GET /there")
            with span("inner", k=2) as inner:
                inner.set(found=1)
            assert traceparent() == outer.traceparent
        assert traceparent() is None

    outer_, inner_ = collector.one("GET /there"), collector.one("inner")
    assert (outer_.trace, outer_.parent, outer_.service, outer_.kind) == (TRACE, PARENT, "km-test", 2)
    assert (inner_.trace, inner_.parent) == (TRACE, outer_.id)
    assert outer.traceparent == f"00-{TRACE}-{outer_.id}-01"
    assert outer_.attributes == {"km.request_id": "req_1"}
    assert inner_.attributes == {"km.k": 2, "km.found": 1}
    assert not outer_.failed


@pytest.mark.parametrize("header", [None, "", SECRET, CLIENTS.upper(), f"00-{'0' * 32}-{PARENT}-01"])
def test_without_a_good_header_a_trace_begins(collector: Collector, header: str | None) -> None:
    with closing(Tracing.to(collector.endpoint, "km-test")) as tracing:
        tracing.begin("first", header).end()
    assert collector.one("first").parent == ""
    assert collector.one("first").trace != TRACE
    assert SECRET.encode() not in collector.raw


def test_what_the_client_does_not_sample_is_not_sent(collector: Collector) -> None:
    with (
        closing(Tracing.to(collector.endpoint, "km-test")) as tracing,
        tracing.begin("first", CLIENTS[:-2] + "00"),
        span("inner"),
    ):
        # The next process is told not to either.
        told = str(traceparent())
        assert (told[3:35], told[-3:]) == (TRACE, "-00")
    assert collector.spans == []


def test_of_an_error_only_its_kind_is_sent(collector: Collector) -> None:
    with closing(Tracing.to(collector.endpoint, "km-test")) as tracing:
        with pytest.raises(ValueError, match=SECRET), tracing.begin("failing"):
            raise ValueError(SECRET)
        with pytest.raises(asyncio.CancelledError), tracing.begin("cancelled"):
            raise asyncio.CancelledError(SECRET)
    failing, cancelled = collector.one("failing"), collector.one("cancelled")
    assert (failing.failed, failing.attributes) == (True, {"error.type": "ValueError"})
    assert (cancelled.failed, cancelled.attributes) == (False, {"km.cut_short": True})
    assert SECRET.encode() not in collector.raw


def test_ending_twice_from_two_threads_is_ending_once(collector: Collector) -> None:
    with closing(Tracing.to(collector.endpoint, "km-test")) as tracing:
        one = tracing.begin("one")
        other = threading.Thread(target=one.end)
        other.start()
        other.join()
        one.end()
        one.set(late=1)
        one.fail("late")
    assert (len(collector.spans), collector.one("one").attributes) == (1, {})


def test_a_collector_that_is_not_there_costs_neither_an_error_nor_much_time() -> None:
    tracing = Tracing.to("http://127.0.0.1:9", "km-test")
    began = time.monotonic()
    for _ in range(100):
        with tracing.begin("lost"), span("inner"):
            pass
    assert time.monotonic() - began < 1.0
    tracing.close()
    tracing.close()
    assert time.monotonic() - began < 4.0
    with tracing.begin("late"):
        assert traceparent() is not None


def test_without_a_collector_a_span_is_one_object_that_does_nothing() -> None:
    tracing = Tracing.to(None, "km-test")
    with tracing.begin("outer", CLIENTS, kind="server") as outer, span("inner", k=2) as inner:
        assert outer is inner is NO_SPAN
        assert traceparent() is None
    assert not tracing.is_on
    tracing.close()


def test_without_a_collector_nothing_that_traces_is_imported(tmp_path: Path) -> None:
    """redis imports a part of the SDK by itself, its metrics; so what traces and exports is looked for."""
    script = (
        "import sys, trainer_worker.worker, server.app, server.supervisor\n"
        "from km_registry.tracing import Tracing, span\n"
        "from server.config import ServerSettings\n"
        "with Tracing.to(ServerSettings().otlp_endpoint, 'km').begin('one'), span('two'): pass\n"
        "import km_registry.tracing\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk.trace', 'opentelemetry."
        "exporter', 'opentelemetry.proto', 'km_registry.trace_export'))])\n"
    )
    environment = {"KM_DATA_DIR": str(tmp_path), "KM_CONFIG": "/dev/null", "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_tracing_alone_imports_nothing_of_opentelemetry() -> None:
    script = (
        "import sys\nfrom km_registry.tracing import Tracing, span\n"
        "with Tracing.to(None, 'km').begin('one'), span('two'): pass\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_address_is_wanted_and_none_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KM_OTLP_ENDPOINT", "http://collector:4318/")
    assert RegistrySettings(data_dir=tmp_path).otlp_endpoint == "http://collector:4318"
    monkeypatch.setenv("KM_OTLP_ENDPOINT", "")
    assert RegistrySettings(data_dir=tmp_path).otlp_endpoint is None
    with pytest.raises(ValidationError, match="http://collector:4318"):
        RegistrySettings(data_dir=tmp_path, otlp_endpoint="collector:4318")
    with pytest.raises(ValidationError, match="OTEL_EXPORTER_OTLP_HEADERS"):
        RegistrySettings(data_dir=tmp_path, otlp_endpoint="http://me:secret@collector")
