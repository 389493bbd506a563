"""What Prometheus may scrape of the engine: gauges and counters that it keeps itself."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from server.engine.base import EngineStatus


class EngineCollector(Collector):
    """Tells what was last set. Nothing of an engine that is not running."""

    def __init__(self) -> None:
        self.status: EngineStatus | None = None
        #: Counts by what they are of.
        self.refused: dict[str, int] = {}
        self.restarts = 0

    def collect(self) -> Iterable[Metric]:
        """All families."""
        yield _family(
            CounterMetricFamily,
            "km_requests_refused",
            "Requests that were refused since too many were there (queue) or that took too long (timeout).",
            "reason",
            self.refused,
        )
        yield CounterMetricFamily(
            "km_engine_restarts", "How often the engine died and was started again.", value=self.restarts
        )
        if self.status is not None:
            yield from _engine(self.status)


def _engine(status: EngineStatus) -> Iterable[Metric]:
    misses = status.adapter_requests - status.found_in_memory
    evicted = {
        "slot": status.swaps - status.pinned - status.idle,
        "memory": status.loads - status.in_memory,
    }
    yield _family(
        GaugeMetricFamily,
        "km_engine_requests",
        "Requests in the engine: waiting for their first token, or being answered.",
        "state",
        {"waiting": status.waiting, "answering": status.answering},
    )
    yield _family(
        GaugeMetricFamily,
        "km_adapter_slots",
        "The engine's slots: with adapters that are being asked, with others, and empty.",
        "state",
        {"pinned": status.pinned, "idle": status.idle, "free": status.free},
    )
    yield GaugeMetricFamily(
        "km_adapters_in_memory", "Adapters in the engine's memory.", value=status.in_memory
    )
    yield _family(
        CounterMetricFamily,
        "km_adapter_requests",
        "Requests with an adapter, by whether the engine had it in memory.",
        "result",
        {"hit": status.found_in_memory, "miss": misses},
    )
    yield _family(
        CounterMetricFamily,
        "km_adapter_moves",
        "Adapters that were loaded from disk to memory, or swapped from memory into a slot.",
        "to",
        {"memory": status.loads, "slot": status.swaps},
    )
    yield _family(
        CounterMetricFamily,
        "km_adapter_move_milliseconds",
        "Time that these took.",
        "to",
        {"memory": status.load_ms, "slot": status.swap_ms},
    )
    yield _family(
        CounterMetricFamily,
        "km_adapter_evictions",
        "Adapters that left a slot, or the engine's memory.",
        "tier",
        evicted,
    )


def _family(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    help_: str,
    label: str,
    values: dict[str, int] | dict[str, float],
) -> Metric:
    family = kind(name, help_, labels=(label,))
    for value in values:
        family.add_metric((value,), values[value])
    return family
