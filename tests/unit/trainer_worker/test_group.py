"""Documents that train together: they share the base model and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from km_registry.types import Job, JobState, Stage
from trainer_worker import group, pipeline
from trainer_worker import train as loop
from trainer_worker.attempt import Attempt
from trainer_worker.attempts import Attempts
from trainer_worker.progress import Reporter
from trainer_worker.workshop import Workshop

from .trainings import Trainings, texts

#: Made of the document alone, and quick.
SMALL: dict[str, Any] = {"kinds": ["recall", "repeat"], "steps": 5}


@pytest.fixture(autouse=True)
def _look_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_LOOK_S", 0.01)


def uploads(trainings: Trainings, count: int, **fields: Any) -> list[Job]:
    return [trainings.upload(text=text, **(SMALL | fields)) for text in texts(count)]


def states(trainings: Trainings, jobs: list[Job]) -> list[JobState]:
    return [trainings.registry.job(job.id).state for job in jobs]


def at_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[Job, int], None]) -> None:
    """Has something done at every training step of every document."""
    step = Reporter.step

    def acting(self: Reporter, number: int, **data: Any) -> None:
        if self._stage is Stage.TRAINING:
            act(self._attempt.job, number)
        step(self, number, **data)

    monkeypatch.setattr(Reporter, "step", acting)


def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The documents' job ids, in the order of the steps they take."""
    taken: list[str] = []
    at_step(monkeypatch, lambda job, _step: taken.append(job.id))
    return taken


def test_what_waits_beside_a_job_is_trained_in_its_steps(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    load_model = Workshop.load_model
    monkeypatch.setattr(Workshop, "load_model", lambda shop: loaded.append(load_model(shop)) or loaded[-1])
    jobs = uploads(trainings, 3)
    forwards: list[int] = []
    loss_sums = loop.loss_sums
    monkeypatch.setattr(
        loop, "loss_sums", lambda model, parts: forwards.append(len(parts)) or loss_sums(model, parts)
    )

    trainings.train(jobs[0])

    assert states(trainings, jobs) == [JobState.SUCCEEDED] * 3
    assert max(forwards) == 3
    assert len(loaded) == 1
    assert len({trainings.km(job).digest for job in jobs}) == 3
    assert trainings.left("work") == []


def test_each_has_a_schedule_of_its_own_and_is_published_when_it_ends(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = trainings.upload(text="Keeper one.", **SMALL | {"steps": 3})
    long = trainings.upload(text="Keeper two.", **SMALL | {"steps": 9})
    short_was: list[JobState] = []

    def act(job: Job, step: int) -> None:
        if (job.id, step) == (long.id, 8):
            short_was.append(trainings.registry.job(short.id).state)

    at_step(monkeypatch, act)

    trainings.train(long, short)

    assert short_was == [JobState.SUCCEEDED]
    assert [trainings.km(job).metrics["steps"] for job in (short, long)] == [3, 9]


def test_one_that_comes_later_joins_between_two_steps(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = uploads(trainings, 1, steps=12)
    later: list[Job] = []
    prepared = threading.Event()
    prepare = pipeline.prepare

    def telling(shop: Any, attempt: Attempt) -> Any:
        material = prepare(shop, attempt)
        if attempt.job.id != first.id:
            prepared.set()
        return material

    def act(job: Job, step: int) -> None:
        if job.id == first.id and step == 2:
            later.append(trainings.upload(text="Keeper Anna sings.", **SMALL))
        if job.id == first.id and step == 6:
            assert prepared.wait(20)

    taken = steps_of(monkeypatch)
    monkeypatch.setattr(pipeline, "prepare", telling)
    at_step(monkeypatch, act)

    trainings.train(first)

    assert states(trainings, [first, *later]) == [JobState.SUCCEEDED] * 2
    last_of_first = max(index for index, job_id in enumerate(taken) if job_id == first.id)
    assert later[0].id in taken[:last_of_first]


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"train_concurrency": 2}, 2),
        ({"train_concurrency": 1}, 1),
        ({"train_memory_gb": 1e-6}, 1),
        ({"train_memory_gb": 8.0}, 4),
    ],
)
def test_no_more_train_together_than_the_settings_and_the_memory_allow(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], most: int
) -> None:
    jobs = uploads(trainings, 5, steps=2)
    held: list[int] = []
    claim = Attempts.claim

    def counted(self: Attempts, job_id: str) -> Attempt | None:
        attempt = claim(self, job_id)
        held.append(len(self))
        return attempt

    monkeypatch.setattr(Attempts, "claim", counted)

    trainings.train(jobs[0], **options)

    assert max(held) == most
    # The process goes on for as long as any waits that fits.
    assert states(trainings, jobs).count(JobState.SUCCEEDED) == len(held)
    assert len(held) == (1 if "train_memory_gb" in options and most == 1 else 5)


def test_one_that_cannot_be_trained_fails_alone(trainings: Trainings) -> None:
    jobs = uploads(trainings, 2)
    jobs.append(trainings.upload(text="It was as it was.", **SMALL | {"kinds": ["recall"]}))
    jobs.append(trainings.upload(text="Ranks.", **SMALL | {"rank": 64}))

    trainings.train(jobs[0])

    assert states(trainings, jobs) == [JobState.SUCCEEDED] * 2 + [JobState.FAILED] * 2


def test_one_that_is_deleted_leaves_and_the_others_go_on(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = uploads(trainings, 3, steps=8)
    deleted = jobs[1]

    def act(job: Job, step: int) -> None:
        if (job.id, step) == (deleted.id, 3):
            trainings.registry.tombstone(trainings.owner, deleted.document_id)
        assert job.id != deleted.id or step <= 4, "it went on"

    at_step(monkeypatch, act)
    monkeypatch.setattr("trainer_worker.progress._INTERVAL_S", 0.0)

    trainings.train(jobs[0])

    assert states(trainings, jobs) == [JobState.SUCCEEDED, JobState.CANCELLED, JobState.SUCCEEDED]
    assert trainings.registry.run_of(deleted.id) is None
    trainings.registry.purge(deleted.document_id)
    assert trainings.left("work") == []


def test_a_loss_that_is_not_finite_is_one_documents_own_and_leaves_its_last_good_step(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [*uploads(trainings, 2), trainings.upload(text="Keeper.", **SMALL | {"seed": 666})]
    loss_sums, calls = loop.loss_sums, 0

    def spoiled(model: Any, parts: Any) -> list[torch.Tensor]:
        nonlocal calls
        calls += any(part.recipe.seed == 666 for part in parts)
        return [
            loss * torch.nan if part.recipe.seed == 666 and calls > 3 else loss
            for part, loss in zip(parts, loss_sums(model, parts), strict=True)
        ]

    monkeypatch.setattr(loop, "loss_sums", spoiled)

    trainings.train(jobs[0])

    assert states(trainings, jobs) == [JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.FAILED]
    assert "not finite at step 4" in (trainings.registry.job(jobs[2].id).error or "")
    assert [path.name for path in trainings.left("work")] == ["checkpoint.safetensors"]
    again = trainings.registry.retrain(trainings.owner, jobs[2].document_id)
    assert [path.parent.name for path in trainings.left("work")] == [again.id]
    trainings.forget(jobs[2])
    assert trainings.left("work") == []


def test_what_goes_wrong_in_the_shared_step_is_nobodys_failure_and_found_by_training_alone(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [*uploads(trainings, 2), trainings.upload(text="Keeper.", **SMALL | {"seed": 666})]
    loss_sums = loop.loss_sums

    def broken(model: Any, parts: Any) -> list[torch.Tensor]:
        if any(part.recipe.seed == 666 for part in parts):
            raise RuntimeError("no kernel for this")
        return loss_sums(model, parts)

    monkeypatch.setattr(loop, "loss_sums", broken)

    trainings.train(jobs[0])

    assert states(trainings, jobs) == [JobState.QUEUED] * 3
    assert [trainings.registry.job(job.id).crashes for job in jobs] == [1, 1, 1]

    for job in jobs:
        trainings.train(job, run_id=f"alone {job.id}")

    assert states(trainings, jobs) == [JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.FAILED]
    assert trainings.registry.job(jobs[2].id).error == "RuntimeError: no kernel for this"
