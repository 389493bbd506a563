"""What Prometheus may scrape of the queue and of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from km_registry.store.measures import TrainingMeasures
from km_registry.types import Stage


class TrainingCollector(Collector):
    """Tells what was last set; nothing before, and no mean of nothing."""

    def __init__(self) -> None:
        self.measured: TrainingMeasures | None = None
        #: Entries in the queue; None while Redis is away.
        self.entries: int | None = None
        #: Workers by queue and by what they do; None while Redis is away.
        self.workers: Mapping[tuple[str, str], int] | None = None

    def collect(self) -> Iterable[Metric]:
        """All families."""
        if self.entries is not None:
            yield GaugeMetricFamily(
                "km_queue_entries", "Trainings in the queue that no worker has taken.", value=self.entries
            )
        if self.workers is not None:
            workers = GaugeMetricFamily(
                "km_workers", "Workers that were heard of lately.", labels=("queue", "state")
            )
            for labels, count in sorted(self.workers.items()):
                workers.add_metric(labels, count)
            yield workers
        if self.measured is None:
            return
        yield GaugeMetricFamily("km_kms", "KMs that answer.", value=self.measured.kms)
        yield GaugeMetricFamily(
            "km_oldest_waiting_training_seconds",
            "How long the oldest training that may begin has waited; 0 when none waits.",
            value=self.measured.oldest_waiting_s,
        )
        stages = GaugeMetricFamily("km_trainings_in_stage", "Running trainings by stage.", labels=("stage",))
        for stage in Stage:
            stages.add_metric((str(stage),), self.measured.stages.get(stage, 0))
        yield stages
        yield from _mean(
            "km_training_seconds_mean",
            "Mean time of the latest trainings, from a worker's claim to the KM.",
            self.measured.mean_seconds,
        )
        yield from _mean(
            "km_recovered_mean",
            "Mean share of what the context tells the model that the KMs tell it too.",
            self.measured.mean_recovered,
        )


def _mean(name: str, documentation: str, value: float | None) -> Iterable[Metric]:
    if value is not None:
        yield GaugeMetricFamily(name, documentation, value=value)
