"""A worker whose clock is off waits, alive, until it is right."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from km_registry.registry import Registry
from trainer_worker import clock as clocks
from trainer_worker import worker as workers
from trainer_worker.clock import WorkerClock
from trainer_worker.worker import KMWorker


@pytest.mark.parametrize(("skew", "is_off"), [(0.0, False), (29.0, False), (31.0, True), (-31.0, True)])
def test_half_a_lease_is_too_much(
    registry: Registry, redis_server: Redis, monkeypatch: pytest.MonkeyPatch, skew: float, is_off: bool
) -> None:
    monkeypatch.setattr(registry, "clock_ahead_s", lambda: skew)
    assert WorkerClock(registry, redis_server, lease_s=60).is_off() is is_off


def test_redis_counts_too_and_it_is_asked_again_when_it_is_time(
    registry: Registry, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = WorkerClock(registry, redis_server, lease_s=60)
    with monkeypatch.context() as patch:
        patch.setattr(clocks, "ahead_s", lambda _: 40.0)
        assert clock.is_off()
    assert clock.is_off(), "it was asked a moment ago"
    monkeypatch.setattr(clock, "_due", 0.0)
    assert not clock.is_off()


def test_a_worker_waits_alive_and_idle(redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue("q", connection=redis_server, serializer=JSONSerializer)
    worker = KMWorker([queue], connection=redis_server, serializer=JSONSerializer)
    answers, states = iter([True, True, False]), list[Any]()

    def beat() -> None:
        states.append(worker.get_state())

    monkeypatch.setattr(workers.time, "sleep", lambda _: None)
    worker.is_held_back = lambda: next(answers)
    worker.on_heartbeat = beat
    worker.check_for_suspension(burst=False)
    assert list(answers) == []
    assert states[-2:] == [WorkerStatus.SUSPENDED] * 2
