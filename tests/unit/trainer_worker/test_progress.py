"""What a training tells: enough, not too much, and never under another's name."""

from __future__ import annotations

from typing import Any

import pytest

from km_registry.errors import StaleAttemptError
from km_registry.registry import Registry
from km_registry.types import Event, Job, Principal, Stage
from trainer_worker import progress
from trainer_worker.attempt import Attempt
from trainer_worker.progress import Reporter


class Clock:
    """Time that goes on when the test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The reporter's clock."""
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.fixture
def attempt(registry: Registry, owner: Principal) -> Attempt:
    """A claimed job's attempt."""
    _, queued, _ = registry.add_document(owner, "Title", "Some text.")
    claimed = registry.claim(queued.id)
    assert claimed
    return Attempt(claimed)


def told(registry: Registry, job: Job) -> list[dict[str, Any]]:
    def keep(event: Event) -> bool:
        return event.kind == "progress"

    return [event.data for event in filter(keep, registry.events_after(job.document_id))]


def test_steps_are_throttled_and_the_last_is_always_written(
    registry: Registry, attempt: Attempt, clock: Clock
) -> None:
    report = Reporter(registry, attempt)
    report.stage(Stage.TRAINING, 64)
    for step in range(1, 65):
        clock.now += 1 / 64
        report.step(step, loss=1.0)

    # One second in all: the beginning, one in the middle, the end.
    data = told(registry, attempt.job)
    assert [one["step"] for one in data] == [0, 32, 64]
    assert all(one["total_steps"] == 64 and one["stage"] == "training" for one in data)


def test_seconds_left_by_hand(registry: Registry, attempt: Attempt, clock: Clock) -> None:
    report = Reporter(registry, attempt)
    report.stage(Stage.TRAINING, 40)
    clock.now += 5
    report.step(10, loss=2.5)
    clock.now += 5
    report.step(40)

    # Ten steps took 5 s, so thirty take 15.
    begun, middle, end = told(registry, attempt.job)
    assert "seconds_left" not in begun
    assert (middle["seconds_left"], middle["loss"]) == (15.0, 2.5)
    assert end["seconds_left"] == 0


def test_evaluations_are_always_written(registry: Registry, attempt: Attempt, clock: Clock) -> None:
    report = Reporter(registry, attempt)
    report.stage(Stage.TRAINING, 40)
    for step, recovered in ((10, 0.25), (20, None), (30, 0.5)):
        report.evaluation(step, recovered)
    _, *data = told(registry, attempt.job)
    assert [(one["step"], one["recovered"]) for one in data] == [(10, 0.25), (30, 0.5)]


def test_a_stage_of_unknown_length_is_throttled_and_promises_nothing(
    registry: Registry, attempt: Attempt, clock: Clock
) -> None:
    report = Reporter(registry, attempt)
    report.stage(Stage.SYNTHESIS)
    for step in range(1, 10):
        clock.now += 0.125
        report.step(step, texts=9)

    assert [data["step"] for data in told(registry, attempt.job)] == [0, 4, 8]
    assert all("seconds_left" not in data for data in told(registry, attempt.job))


def test_the_row_says_it_too(registry: Registry, attempt: Attempt, clock: Clock) -> None:
    report = Reporter(registry, attempt)
    report.stage(Stage.TEACHER, 8)
    clock.now += 1
    report.step(3)

    row = registry.job(attempt.job.id)
    assert (row.stage, row.step, row.total_steps) == (Stage.TEACHER, 3, 8)


def test_seconds_of_every_stage(registry: Registry, attempt: Attempt, clock: Clock) -> None:
    report = Reporter(registry, attempt)
    for stage, seconds in ((Stage.SYNTHESIS, 3.0), (Stage.TRAINING, 10.25), (Stage.SYNTHESIS, 2.0)):
        report.stage(stage, 1)
        clock.now += seconds

    assert report.finish() == {"synthesis": 5.0, "training": 10.25}


def test_an_attempt_that_lost_its_job_is_stopped(
    registry: Registry, owner: Principal, attempt: Attempt, clock: Clock
) -> None:
    report = Reporter(registry, attempt)
    report.stage(Stage.TRAINING, 10)
    registry.release(attempt.job.id, attempt.job.attempt)
    registry.claim(attempt.job.id)
    clock.now += 1

    with pytest.raises(StaleAttemptError):
        report.step(1)
    with pytest.raises(StaleAttemptError):
        report.stage(Stage.EXPORT)


def test_one_whose_job_was_taken_away_hears_of_it_at_the_next_step(
    registry: Registry, attempt: Attempt, clock: Clock
) -> None:
    report = Reporter(registry, attempt)
    report.stage(Stage.TRAINING, 10)
    attempt.lose()

    with pytest.raises(StaleAttemptError):
        report.step(1)
    assert [data["step"] for data in told(registry, attempt.job)] == [0]
