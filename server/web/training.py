"""A training as the page shows it: folded from its events, one panel for what has happened so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from km_registry.types import Event, Job, JobState, Stage
from server.web import plot
from server.web.wording import STAGES, seconds, state_name

#: The states that events end a job in.
_ENDS = {
    "published": JobState.SUCCEEDED,
    "failed": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
    "queued": JobState.QUEUED,
}


@dataclass(frozen=True, slots=True)
class Step:
    """A stage in the row of stages: `done`, `now` or `ahead`."""

    name: str
    where: str


@dataclass(slots=True)
class Training:
    """One job, as far as its events tell. `loss` and `recovered` are points of curves: (step, value)."""

    job_id: str
    state: JobState = JobState.QUEUED
    stage: Stage = Stage.WAITING
    step: int = 0
    total_steps: int = 0
    seconds_left: float | None = None
    error: str | None = None
    recovered_at_end: float | None = None
    train_steps: int = 0
    loss: dict[int, float] = field(default_factory=dict)
    recovered: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, events: Iterable[Event]) -> Training:
        """The job, with what its events so far add to its row."""
        made = cls(job.id, job.state, job.stage, job.step, job.total_steps, error=job.error)
        for event in events:
            made.take(event)
        if job.state.finished:
            made.state, made.error = job.state, job.error
        return made

    def take(self, event: Event) -> bool:
        """Take one more event in; whether it is about this job."""
        if event.job_id != self.job_id:
            return False
        if event.kind == "progress":
            self._progress(event.data)
        elif event.kind in _ENDS:
            self.state = _ENDS[event.kind]
            self.error = event.data.get("error") or event.data.get("reason")
            self.seconds_left = None
            if self.state is JobState.SUCCEEDED:
                self.recovered_at_end = event.data.get("metrics", {}).get("recovered")
        return True

    def _progress(self, data: dict[str, Any]) -> None:
        stage = Stage(data["stage"])
        if stage is not self.stage or "seconds_left" in data:
            # An evaluation in between says nothing about it.
            self.seconds_left = data.get("seconds_left")
        self.state, self.stage, self.error = JobState.RUNNING, stage, None
        self.step, self.total_steps = data["step"], data["total_steps"]
        if self.stage is Stage.TRAINING:
            self._curves(data)
        elif data.get("recovered") is not None:
            self.recovered_at_end = data["recovered"]

    def _curves(self, data: dict[str, Any]) -> None:
        self.train_steps = self.total_steps
        # One that was killed goes on from its last checkpoint: what came after that is done again.
        for curve in (self.loss, self.recovered):
            for step in [step for step in curve if step > self.step]:
                del curve[step]
        for curve, name in ((self.loss, "loss"), (self.recovered, "recovered")):
            if data.get(name) is not None:
                curve[self.step] = data[name]

    @property
    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self.state.finished

    @property
    def label(self) -> str:
        """One or two words."""
        return state_name(self.state, self.stage)

    @property
    def steps(self) -> list[Step]:
        """Every stage, and whether it is done."""
        order = list(STAGES)
        at = order.index(self.stage) if self.stage in order else -1
        if self.state is JobState.SUCCEEDED:
            at = len(order)
        return [
            Step(name, "done" if place < at else "now" if place == at else "ahead")
            for place, name in enumerate(STAGES.values())
        ]

    @property
    def note(self) -> str:
        """What it does now, and for how long still."""
        match self.state:
            case JobState.QUEUED:
                return self.error or "Waiting for its turn."
            case JobState.RUNNING:
                if not self.total_steps:
                    return "Under way."
                left = self.seconds_left
                then = "" if left is None else f", {seconds(left)} left in this stage"
                return f"Step {self.step} of {self.total_steps}{then}."
            case JobState.SUCCEEDED:
                return "The KM is trained and answers."
            case JobState.FAILED:
                return self.error or "It failed."
            case JobState.CANCELLED:
                return "It was cancelled."

    @property
    def plot(self) -> plot.Plot:
        """Both curves, ready to be drawn."""
        return plot.drawn(self.train_steps, self.loss, self.recovered)
