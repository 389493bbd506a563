"""What a training tells the world while it runs: stage, step, loss, seconds left."""

from __future__ import annotations

import time

from km_registry.registry import Registry
from km_registry.types import Stage
from trainer_worker.attempt import Attempt

#: Least seconds between two events of one stage.
_INTERVAL_S = 0.5


class Reporter:
    """Writes progress for one attempt; raises StaleAttemptError once the attempt owns the job no more."""

    def __init__(self, registry: Registry, attempt: Attempt) -> None:
        self._registry = registry
        self._attempt = attempt
        self._stage, self._total = Stage.WAITING, 0
        self._began = self._last = 0.0
        #: Seconds that each stage took.
        self.seconds: dict[str, float] = {}

    def stage(self, stage: Stage, total: int = 0, **data: float | str | int) -> None:
        """A new stage begins, of `total` steps; 0 when nobody knows how many."""
        self._close()
        self._stage, self._total = stage, total
        self._attempt.trace.stage(stage.value)
        self._began = time.monotonic()
        self._write(0, data)

    def step(self, step: int, **data: float | str | int) -> None:
        """So many steps of the stage are done. Not every one is written, the last one always."""
        self._attempt.check()
        now = time.monotonic()
        is_last = 0 < self._total <= step
        if not is_last and now - self._last < _INTERVAL_S:
            return
        if step and self._total:
            data["seconds_left"] = round((now - self._began) / step * (self._total - step), 1)
        self._write(step, data)

    def evaluation(self, step: int, recovered: float | None) -> None:
        """After so many steps of the stage the KM tells this share of what the context tells; always written,
        for the curve. None: nobody knows."""
        if recovered is not None:
            self._attempt.check()
            self._write(step, {"recovered": round(recovered, 4)})

    def finish(self) -> dict[str, float]:
        """The last stage is over; seconds of every stage."""
        self._close()
        return self.seconds

    def _close(self) -> None:
        if self._began:
            spent = self.seconds.get(str(self._stage), 0.0) + time.monotonic() - self._began
            self.seconds[str(self._stage)] = round(spent, 2)

    def _write(self, step: int, data: dict[str, float | str | int]) -> None:
        self._last = time.monotonic()
        job = self._attempt.job
        self._registry.progress(job.id, job.attempt, self._stage, step, self._total, **data)
