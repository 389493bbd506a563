"""A training that was interrupted goes on from where it was, with the result it would have had."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from km_registry.types import JobState, Stage

from .trainings import RECIPE, Killed, Trainings, interrupted, kill_at, play, written

ANOTHER: dict[str, Any] = {"kinds": ["recall", "repeat"], "steps": 5, "chunk_tokens": 60, "rank": 4}


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        (Stage.TEACHER, None),
        (Stage.TRAINING, None),
        (Stage.TRAINING, 1),
        (Stage.TRAINING, 4),
        (Stage.TRAINING, 6),
        (Stage.EVALUATION, None),
        (Stage.EXPORT, None),
    ],
)
def test_the_km_is_the_same(trainings: Trainings, stage: Stage, step: int | None) -> None:
    whole = trainings.upload(dropout=0.1)
    expected = trainings.published(whole)
    trainings.forget(whole)
    job = trainings.upload(dropout=0.1)

    interrupted(trainings, job, stage, step)
    km = trainings.published(job)

    assert km.digest == expected.digest
    assert km.metrics["attempts"] == 2
    assert trainings.left("work") == []


def test_nothing_is_done_twice(trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[httpx.Request] = []
    play(monkeypatch, lambda request: asked.append(request) or written(request))
    job = trainings.upload()
    interrupted(trainings, job, Stage.TRAINING, 4)
    before = len(asked)
    assert before

    trainings.train(job)

    assert len(asked) == before
    events = [event.data for event in trainings.told(job) if event.kind == "progress"]
    second = events[[data["stage"] for data in events].index("synthesis", 1) :]
    steps = [data["step"] for data in second if data["stage"] == "training" and data["step"]]
    # Twice: as a step, and with what the look at the held-out samples found.
    assert set(steps) == {6}


def test_the_third_crash_is_the_last(trainings: Trainings) -> None:
    job = trainings.upload()
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, Stage.EVALUATION, None)
            with pytest.raises(Killed):
                trainings.train(job)
        trainings.registry.end_run("run-0", crash="killed by signal 9")

    after = trainings.registry.job(job.id)
    assert (after.state, after.attempt) == (JobState.FAILED, 3)
    assert trainings.left("work") == []


def test_another_recipe_does_not_go_on_from_what_the_one_before_left(trainings: Trainings) -> None:
    job = trainings.upload()
    interrupted(trainings, job, Stage.TRAINING, 4)
    attempt = trainings.registry.claim(job.id)
    assert attempt
    trainings.registry.fail(job.id, attempt.attempt, "not finite", keep=("checkpoint.safetensors",))
    again = trainings.registry.retrain(trainings.owner, job.document_id, RECIPE | ANOTHER)
    fresh = trainings.published(again)
    trainings.forget(job)

    alone = trainings.published(trainings.upload(**ANOTHER))

    assert fresh.digest == alone.digest
