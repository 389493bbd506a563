"""Bringing queue and registry into line; what queues do is in the contract tests."""

from __future__ import annotations

from km_registry.jobs import MemoryJobQueue, reconcile
from km_registry.registry import Registry
from km_registry.types import Principal


def test_reconciling_enqueues_what_waits_for_a_worker(registry: Registry, owner: Principal) -> None:
    jobs = [registry.add_document(owner, "n", f"text {index}")[1] for index in range(4)]
    failed, running, released, waiting = jobs
    for job in (failed, running, released):
        assert registry.claim(job.id) is not None
    registry.fail(failed.id, 1, "no")
    registry.release(released.id, 1)
    queue = MemoryJobQueue()
    assert reconcile(registry, queue) == 2
    assert queue.waiting() == [released.id, waiting.id]
    assert reconcile(registry, queue) == 2
    assert queue.waiting() == [released.id, waiting.id]


def test_taking_is_what_a_worker_does(registry: Registry, owner: Principal) -> None:
    job = registry.add_document(owner, "n", "text")[1]
    queue = MemoryJobQueue()
    queue.enqueue(job)
    assert queue.take() == job.id
    assert queue.take() is None
