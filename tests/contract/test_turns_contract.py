"""Whose turn it is in the queue, and what is tried again later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from km_registry.config import RegistrySettings
from km_registry.errors import ConflictError, NotFoundError
from km_registry.registry import Registry
from km_registry.types import Document, Job, JobState, Principal, Priority
from tests.contract.support import claimed, publish


@pytest.fixture
def settings(settings: RegistrySettings) -> RegistrySettings:
    return settings.model_copy(update={"retries": 2, "retry_seconds": 60.0})


def upload(registry: Registry, owner: Principal, count: int) -> list[Job]:
    return [registry.add_document(owner, "n", f"{owner.user_id} {number}")[1] for number in range(count)]


def order(registry: Registry) -> list[str]:
    return [job.id for job in registry.queued_jobs(1000)]


class TestTurns:
    def test_owners_alternate(self, registry: Registry, owner: Principal, stranger: Principal) -> None:
        many, few = upload(registry, owner, 5), upload(registry, stranger, 2)
        expected = [many[0], few[0], many[1], few[1], *many[2:]]
        assert order(registry) == [job.id for job in expected]
        assert [job.id for job in registry.unfinished_jobs()] == order(registry)
        assert [job.id for job in registry.queued_jobs(3)] == order(registry)[:3]

    def test_one_document_is_not_behind_a_thousand(
        self, registry: Registry, owner: Principal, stranger: Principal
    ) -> None:
        many = upload(registry, owner, 40)
        for job in many[:4]:
            claimed(registry, job.id)
        (one,) = upload(registry, stranger, 1)
        assert order(registry)[0] == one.id

    def test_a_worker_sees_the_turns_of_what_it_serves(
        self, registry: Registry, owner: Principal, stranger: Principal
    ) -> None:
        large = {"queue": "large-gpu"}
        plain = upload(registry, owner, 2)
        first = registry.add_document(owner, "n", "large 1", large)[1]
        second = registry.add_document(owner, "n", "large 2", large)[1]
        others = registry.add_document(stranger, "n", "large 3", large)[1]
        assert (first.queue, plain[0].queue) == ("large-gpu", "default")
        assert registry.queued_jobs(9, {"large-gpu"}) == [first, others, second]
        assert registry.queued_jobs(9, ["default"]) == plain
        assert len(registry.queued_jobs(9, ["default", "large-gpu"])) == 5
        assert registry.queued_jobs(9, ["elsewhere"]) == []
        assert len(registry.unfinished_jobs()) == 5

    def test_what_waits_is_counted_by_queue(self, registry: Registry, owner: Principal) -> None:
        upload(registry, owner, 3)
        for number in range(2):
            registry.add_document(owner, "n", f"large {number}", {"queue": "large-gpu"})
        claimed(registry, order(registry)[0])
        assert registry.waiting_by_queue() == {"default": 2, "large-gpu": 2}

    def test_what_runs_counts_as_a_turn(
        self, registry: Registry, owner: Principal, stranger: Principal
    ) -> None:
        many, few = upload(registry, owner, 3), upload(registry, stranger, 2)
        claimed(registry, many[0].id)
        assert order(registry) == [few[0].id, many[1].id, few[1].id, many[2].id]

    def test_what_has_ended_does_not(self, registry: Registry, owner: Principal, stranger: Principal) -> None:
        document, job, _ = registry.add_document(owner, "n", "trained")
        publish(registry, document, job)
        mine, others = upload(registry, owner, 1), upload(registry, stranger, 1)
        assert order(registry) == [mine[0].id, others[0].id]

    def test_priority_orders_an_owners_own(
        self, registry: Registry, owner: Principal, stranger: Principal
    ) -> None:
        first, second, third = upload(registry, owner, 3)
        (other,) = upload(registry, stranger, 1)
        registry.prioritise(owner, first.document_id, Priority.LOW)
        registry.prioritise(owner, third.document_id, Priority.HIGH)
        # Of like turns the older is first; the stranger's first turn is no later for it.
        assert order(registry) == [third.id, other.id, second.id, first.id]
        assert registry.job(third.id).priority is Priority.HIGH

    def test_only_what_waits_can_be_ordered(
        self, registry: Registry, owner: Principal, stranger: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        with pytest.raises(NotFoundError):
            registry.prioritise(stranger, kaldvik[0].id, Priority.HIGH)
        claimed(registry, kaldvik[1].id)
        with pytest.raises(ConflictError, match="nothing to order"):
            registry.prioritise(owner, kaldvik[0].id, Priority.HIGH)


class TestPutOff:
    def test_it_waits_for_its_time(self, registry: Registry, kaldvik: tuple[Document, Job]) -> None:
        job = claimed(registry, kaldvik[1].id)
        off = registry.put_off(job.id, job.attempt, "the disk is full")
        assert (off.state, off.retries, off.error) == (JobState.QUEUED, 1, "the disk is full")
        assert off.not_before is not None
        assert timedelta(seconds=50) < off.not_before - datetime.now(UTC) <= timedelta(seconds=60)
        assert registry.claim(job.id) is None
        assert order(registry) == []
        assert registry.unfinished_jobs() == []
        event = registry.events_after(kaldvik[0].id)[-1]
        assert (event.kind, event.data["reason"]) == ("queued", "the disk is full")

    def test_the_wait_doubles_and_then_it_fails_with_the_reason(
        self, settings: RegistrySettings, registry: Registry, kaldvik: tuple[Document, Job]
    ) -> None:
        """On a clock that has gone on: with no wait at all each is due at once."""
        due = settings.model_copy(update={"retry_seconds": 0.0})
        waits = []
        with Registry.open(due) as patient:
            for _ in range(2):
                job = claimed(patient, kaldvik[1].id)
                waits.append(patient.put_off(job.id, job.attempt, "away").retries)
            last = claimed(patient, kaldvik[1].id)
            assert last.error is None
            ended = patient.put_off(last.id, last.attempt, "away")
        assert waits == [1, 2]
        assert (ended.state, ended.error) == (JobState.FAILED, "away (attempts that failed so: 3)")

    def test_a_later_wait_is_longer(
        self, registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job]
    ) -> None:
        with Registry.open(settings.model_copy(update={"retry_seconds": 0.0})) as patient:
            job = claimed(patient, kaldvik[1].id)
            patient.put_off(job.id, job.attempt, "away")
        job = claimed(registry, kaldvik[1].id)
        off = registry.put_off(job.id, job.attempt, "away")
        assert off.not_before is not None
        assert timedelta(seconds=110) < off.not_before - datetime.now(UTC) <= timedelta(seconds=120)

    def test_what_was_kept_is_there_for_the_next(
        self, registry: Registry, kaldvik: tuple[Document, Job]
    ) -> None:
        job = claimed(registry, kaldvik[1].id)
        for name in ("kept", "half"):
            (registry.work_dir(job.id) / name).write_text("x")
        registry.put_off(job.id, job.attempt, "away", keep=["kept"])
        assert [path.name for path in registry.work_dir(job.id).iterdir()] == ["kept"]
