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
    adapters = status.adapters
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
        {"pinned": adapters.pinned, "idle": adapters.idle, "free": adapters.free},
    )
    yield GaugeMetricFamily(
        "km_adapters_in_memory", "Adapters in the engine's memory.", value=adapters.in_memory
    )
    yield GaugeMetricFamily(
        "km_adapter_requests_waiting",
        "Requests that wait since all slots are in use by others' adapters.",
        value=adapters.waiting,
    )
    yield _family(
        CounterMetricFamily,
        "km_adapter_requests",
        "Requests with an adapter, by where it was: in a slot, in memory or on disk.",
        "found",
        {
            "slot": adapters.found_in_slot,
            "memory": adapters.found_in_memory,
            "disk": adapters.found_on_disk,
        },
    )
    yield _family(
        CounterMetricFamily,
        "km_adapter_moves",
        "Adapters that were loaded from disk to memory, or swapped from memory into a slot.",
        "to",
        {"memory": adapters.loads, "slot": adapters.swaps},
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
        {"slot": adapters.left_slot, "memory": adapters.left_memory},
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
