"""What Prometheus may scrape. One registry for each server, so that two in a process do not mix."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from km_registry.store.measures import TrainingMeasures
from km_registry.types import JobState
from server.engine.base import EngineStatus
from server.engine_metrics import EngineCollector
from server.training_metrics import TrainingCollector

_MILLISECONDS = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, float("inf"))
_COMPOSE_SECONDS = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, float("inf"))


class Metrics:
    """Counters and gauges of one server. No label holds anything that a client wrote."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "km_http_requests",
            "HTTP requests that were answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._answer_milliseconds = Histogram(
            "km_answer_milliseconds",
            "Time from a question's arrival to its whole answer.",
            ("mode",),
            buckets=_MILLISECONDS,
            registry=self.registry,
        )
        self._first_token_milliseconds = Histogram(
            "km_first_token_milliseconds",
            "Time from a request's way into the engine to its first token.",
            ("mode",),
            buckets=_MILLISECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "km_tokens",
            "Tokens read (prompt) and written (completion).",
            ("mode", "kind"),
            registry=self.registry,
        )
        self._compose_seconds = Histogram(
            "km_compose_seconds",
            "Time to make a composite of a KM and a KE.",
            buckets=_COMPOSE_SECONDS,
            registry=self.registry,
        )
        self._composites = Gauge("km_composites", "Composites that are kept.", registry=self.registry)
        self._composite_bytes = Gauge(
            "km_composite_cache_bytes", "What composites take on disk.", registry=self.registry
        )
        self._documents = Gauge("km_documents", "Documents that are kept.", registry=self.registry)
        self._engine = EngineCollector()
        self.registry.register(self._engine)
        self._engine_up = Gauge("km_engine_up", "Whether the engine is running.", registry=self.registry)
        self._training = TrainingCollector()
        self.registry.register(self._training)
        self._clock_skew = Gauge(
            "km_clock_skew_seconds",
            "How many seconds a clock is ahead of this machine's.",
            ("of",),
            registry=self.registry,
        )
        self._jobs = Gauge("km_jobs", "Jobs by state.", ("state",), registry=self.registry)

    def request(self, method: str, route: str, status: int) -> None:
        """Count one HTTP request by its route's template."""
        self._requests.labels(method, route, str(status)).inc()

    def answer(self, mode: str, milliseconds: float) -> None:
        """Count one answer and its time."""
        self._answer_milliseconds.labels(mode).observe(milliseconds)

    def first_token(self, mode: str, seconds: float) -> None:
        """Count a request by the time that its first token took."""
        self._first_token_milliseconds.labels(mode).observe(seconds * 1000)

    def tokens(self, mode: str, prompt: int, completion: int) -> None:
        """Count the tokens of one answer or completion."""
        self._tokens.labels(mode, "prompt").inc(prompt)
        self._tokens.labels(mode, "completion").inc(completion)

    def composed(self, seconds: float) -> None:
        """Count one composite that was made, and its time."""
        self._compose_seconds.observe(seconds)

    def composites(self, count: int, size_bytes: int) -> None:
        """Set how many composites there are now, and what they take on disk."""
        self._composites.set(count)
        self._composite_bytes.set(size_bytes)

    def kept(self, documents: int, jobs: Mapping[JobState, int]) -> None:
        """Set how many documents there are now, and how many jobs in each state."""
        self._documents.set(documents)
        for state in JobState:
            self._jobs.labels(state).set(jobs.get(state, 0))

    def engine(self, status: EngineStatus | None) -> None:
        """Set what the engine is doing; None while it does not run."""
        self._engine.status = status
        self._engine_up.set(status is not None)

    def training(
        self,
        measured: TrainingMeasures,
        entries: int | None,
        workers: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        """Set what is measured of training, how many entries the queue has, and how many workers there are by
        queue and state; None while Redis is away."""
        self._training.measured = measured
        self._training.entries = entries
        self._training.workers = workers

    def refused(self, *, queue: int, timeout: int, restarts: int) -> None:
        """Set how many requests were refused so far, and how often the engine was started again."""
        self._engine.refused = {"queue": queue, "timeout": timeout}
        self._engine.restarts = restarts

    def clocks(self, skews: Mapping[str, float]) -> None:
        """Set how many seconds other clocks are ahead of this machine's, by whose they are."""
        self._clock_skew.clear()
        for of, seconds in skews.items():
            self._clock_skew.labels(of).set(seconds)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
