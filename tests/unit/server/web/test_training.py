"""A training folded from its events."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from km_registry.types import Event, Job, JobState, Stage
from server.web.training import Training

NOW = datetime(2026, 1, 31, tzinfo=UTC)
_ids = count(1)


def job(state: JobState = JobState.QUEUED, **fields: Any) -> Job:
    return Job("job_a", "doc_a", state, 1, Stage.WAITING, 0, 0, NOW, **fields)


def event(kind: str, job_id: str = "job_a", **data: Any) -> Event:
    return Event(next(_ids), "doc_a", job_id, kind, data, NOW)


def progress(stage: str, step: int = 0, total: int = 0, **data: Any) -> Event:
    return event("progress", stage=stage, step=step, total_steps=total, **data)


def test_a_waiting_one() -> None:
    training = Training.of(job(), [event("queued")])
    assert (training.label, training.note) == ("Waiting", "Waiting for its turn.")
    assert {step.where for step in training.steps} == {"ahead"}
    assert not training.finished


def test_it_says_what_it_does_and_for_how_long() -> None:
    training = Training.of(
        job(JobState.RUNNING),
        [progress("teacher", 3, 8), progress("training", 40, 200, loss=2.5, seconds_left=95.0)],
    )
    assert training.note == "Step 40 of 200, 1 min 35 s left in this stage."
    assert [step.where for step in training.steps] == ["done", "done", "now", "ahead", "ahead"]


def test_curves_are_drawn_from_the_events() -> None:
    training = Training.of(
        job(JobState.RUNNING),
        [
            progress("synthesis", 1, 4),
            progress("training", 0, 200),
            progress("training", 10, 200, loss=3.0),
            progress("training", 100, 200, recovered=0.4),
            progress("training", 110, 200, loss=2.0),
        ],
    )
    assert training.loss == {10: 3.0, 110: 2.0}
    assert training.recovered == {100: 0.4}
    assert "After 110 steps the loss is 2.00 and 40 % is recovered." in training.plot.words


def test_one_that_was_killed_goes_on_from_its_checkpoint() -> None:
    told = [progress("training", step, 200, loss=1.0) for step in (50, 100, 150)]
    training = Training.of(job(JobState.RUNNING), [*told, event("queued", reason="its worker vanished")])
    assert training.note == "its worker vanished"
    training.take(progress("training", 101, 200, loss=0.9))
    assert training.loss == {50: 1.0, 100: 1.0, 101: 0.9}


@pytest.mark.parametrize(
    ("kind", "data", "state", "note"),
    [
        ("published", {"km_id": "km_a", "metrics": {"recovered": 0.8}}, JobState.SUCCEEDED, "answers"),
        ("failed", {"error": "the loss is not finite"}, JobState.FAILED, "the loss is not finite"),
        ("cancelled", {}, JobState.CANCELLED, "cancelled"),
    ],
)
def test_how_it_ends(kind: str, data: dict[str, Any], state: JobState, note: str) -> None:
    training = Training.of(job(JobState.RUNNING), [progress("training", 5, 10, loss=1.0)])
    assert training.take(event(kind, **data))
    assert (training.state, training.finished) == (state, True)
    assert note in training.note
    done = {step.where for step in training.steps} == {"done"}
    assert done is (state is JobState.SUCCEEDED)


def test_events_of_another_job_are_not_its() -> None:
    training = Training.of(job(), [event("failed", job_id="job_before", error="x")])
    assert training.state is JobState.QUEUED
    assert not training.take(event("published", job_id="job_after"))
