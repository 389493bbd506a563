"""A training that one machine began is finished by another, with the result that it would have had."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from km_registry.errors import StoreUnavailableError
from km_registry.registry import Registry
from km_registry.types import Job, JobState, Stage
from trainer_worker import handover
from trainer_worker.attempt import Attempt
from trainer_worker.handover import Handover, take_over

from .trainings import Trainings, interrupted, play, written


@pytest.fixture
def settings(settings: Any, share: Path) -> Any:
    return settings.model_copy(update={"store_url": f"file://{share}"})


@pytest.fixture
def here(trainings: Trainings, settings: Any) -> Trainings:
    """The first machine: every step is a checkpoint, and each is handed over."""
    often = {
        "store_url": settings.store_url,
        "database_url": settings.effective_database_url,
        "checkpoint_seconds": 1e-9,
        "shutdown_grace": 60.0,
    }
    return replace(trainings, settings=trainings.settings.model_copy(update=often))


@pytest.fixture
def elsewhere(here: Trainings, tmp_path: Path) -> Iterator[Trainings]:
    """The second one."""
    with machine(here, tmp_path / "elsewhere") as other:
        yield other


@contextmanager
def machine(like: Trainings, directory: Path) -> Iterator[Trainings]:
    settings = like.settings.model_copy(update={"data_dir": directory})
    with Registry.open(settings) as registry:
        yield Trainings(registry, settings, like.owner)


def handed_over(share: Path) -> list[Path]:
    return sorted(path for path in share.rglob("work/*/*") if path.is_file())


def looks(trainings: Trainings, job: Job, attempt: int) -> set[int]:
    """The steps after which this attempt looked at the held-out samples: of six every second."""
    told = trainings.told(job)
    begins = [number for number, event in enumerate(told) if event.kind == "queued"] + [len(told)]
    own = [event.data for event in told[begins[attempt - 1] : begins[attempt]]]
    return {data["step"] for data in own if data.get("stage") == "training" and "recovered" in data}


def test_whichever_machines_had_it_the_km_is_the_same(
    here: Trainings, elsewhere: Trainings, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = here.upload(dropout=0.1)
    expected = here.published(whole)
    here.forget(whole)
    asked: list[httpx.Request] = []
    play(monkeypatch, lambda request: asked.append(request) or written(request))
    job = here.upload(dropout=0.1)
    interrupted(here, job, Stage.TEACHER, None)
    before = len(asked)
    assert before

    with capture_logs() as logs:
        interrupted(elsewhere, job, Stage.TRAINING, 4)
        # Where the text lies, but not the checkpoint; then where both do.
        interrupted(here, job, Stage.EXPORT, None)
        assert len(handed_over(share)) == 1
        km = here.published(job)

    assert km.digest == expected.digest
    assert km.metrics["attempts"] == 4
    assert len(asked) == before, "nothing is written twice"
    assert [looks(here, job, attempt) for attempt in (2, 3, 4)] == [{2, 4}, {6}, set()]
    assert [line["job"] for line in logs if line["event"].startswith("going on")] == [job.id] * 2
    assert handed_over(share) == []
    assert here.left("work") == []


def test_what_is_damaged_is_begun_anew(here: Trainings, elsewhere: Trainings, share: Path) -> None:
    job = here.upload()
    interrupted(here, job, Stage.TRAINING, 4)
    (object_,) = handed_over(share)
    object_.write_bytes(object_.read_bytes()[:-1])

    with capture_logs() as logs:
        elsewhere.published(job)

    assert "what was handed over is damaged and is ignored" in [line["event"] for line in logs]
    assert looks(here, job, 2) == {2, 4, 6}
    assert handed_over(share) == []


def test_of_half_the_synthetic_text_only_the_rest_is_written(
    here: Trainings, elsewhere: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[httpx.Request] = []
    play(monkeypatch, lambda request: asked.append(request) or written(request))
    handed: list[bytes] = []
    job = here.upload(samples_per_chunk=32, chunk_tokens=30)
    with pytest.MonkeyPatch.context() as patch:
        # At once, so that each is seen.
        patch.setattr(Handover, "note", lambda self, *of: self._send(handover._Due(0.0, *of)))
        patch.setattr(Registry, "hand_over", lambda _self, _job, work: handed.append(work))
        interrupted(here, job, Stage.TEACHER, None)
    all_of_it = len(asked)
    attempt = here.registry.claim(job.id)
    assert attempt
    here.registry.hand_over(attempt, handed[0])
    here.registry.release(attempt.id, attempt.attempt)
    asked.clear()

    elsewhere.train(job)

    assert 0 < len(asked) < all_of_it


def test_a_store_that_is_away_does_not_hold_the_training_up(
    here: Trainings, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailableError

    monkeypatch.setattr(Registry, "hand_over", away)
    job = here.upload()

    with capture_logs() as logs:
        here.train(job, checkpoint_seconds=0.05)

    assert here.registry.job(job.id).state is JobState.SUCCEEDED
    assert {line["error"] for line in logs if line["event"] == "work not handed over"} == {
        "StoreUnavailableError"
    }
    assert handed_over(share) == []


def test_a_store_that_is_away_is_waited_for_only_where_nothing_is(
    here: Trainings, elsewhere: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = here.upload()
    interrupted(here, job, Stage.TRAINING, 4)

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(Registry, "handed_over", away)
    elsewhere.train(job)
    put_off = here.registry.job(job.id)
    assert (put_off.state, put_off.retries) == (JobState.QUEUED, 1)

    another = here.upload(text="Another harbour. It has two keepers, and a bell of its own.")
    interrupted(here, another, Stage.TRAINING, 4)
    here.train(another)
    assert looks(here, another, 2) == {6}


# --- how often ---------------------------------------------------------------------------------------------


@pytest.fixture
def attempt(here: Trainings) -> Attempt:
    """Of a job that is claimed here."""
    job = here.registry.claim(here.upload().id)
    assert job
    return Attempt(job)


class Sent:
    """What a registry was given to hand over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = threading.Semaphore(0)
        self.count = 0
        hand_over = Registry.hand_over

        def handing_over(registry: Registry, job: Job, work: bytes) -> None:
            hand_over(registry, job, work)
            self.count += 1
            self.times.release()

        monkeypatch.setattr(Registry, "hand_over", handing_over)


def test_it_goes_at_most_so_often_and_what_is_left_at_the_end(
    here: Trainings, attempt: Attempt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent = Sent(monkeypatch)
    directory = here.registry.work_dir(attempt.job.id)
    journal = directory / "synthesis.jsonl"
    with Handover(here.registry, every_s=3600, grace_s=60) as handing:
        for number in range(5):
            journal.write_text(f"{number}")
            handing.note(attempt, directory)
            if not number:
                assert sent.times.acquire(timeout=60)
        assert sent.count == 1
    assert sent.count == 2
    here.registry.release(attempt.job.id, attempt.job.attempt)
    again = here.registry.claim(attempt.job.id)
    assert again
    with machine(here, tmp_path / "elsewhere") as other:
        take_over(other.registry, Attempt(again))
        found = other.registry.work_dir(again.id) / "synthesis.jsonl"
        assert found.read_text() == "4"


def test_nothing_goes_once_the_job_is_lost(
    here: Trainings, attempt: Attempt, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = here.registry.work_dir(attempt.job.id)
    (directory / "synthesis.jsonl").write_text("text")
    attempt.lose()
    with Handover(here.registry, every_s=1e-9, grace_s=60) as handing:
        handing.note(attempt, directory)
    assert handed_over(share) == []


def test_there_is_nothing_to_hand_over_of_an_empty_directory(
    here: Trainings, attempt: Attempt, share: Path
) -> None:
    with Handover(here.registry, every_s=1e-9, grace_s=60) as handing:
        handing.note(attempt, here.registry.work_dir(attempt.job.id))
    assert handed_over(share) == []
