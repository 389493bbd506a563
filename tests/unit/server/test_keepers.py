"""What goes on beside the requests."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from km_registry.registry import Registry
from km_registry.types import Principal
from server import keepers
from server.redis_private import PrivateRedis
from server.state import AppState


class Deletions:
    def __init__(self) -> None:
        self.resumed = 0

    async def resume(self) -> int:
        self.resumed += 1
        return 0


async def rounds(keeper: Any, enough: asyncio.Event) -> None:
    task = asyncio.create_task(keeper)
    try:
        await asyncio.wait_for(enough.wait(), 10)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_reconciling_goes_on_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Any] = [redis.ConnectionError("away"), 2]
    loop, enough = asyncio.get_running_loop(), asyncio.Event()

    def reconcile(registry: Any, queue: Any) -> int:
        if not outcomes:
            loop.call_soon_threadsafe(enough.set)
            return 0
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)

    monkeypatch.setattr(keepers, "reconcile", reconcile)
    deletions: Any = Deletions()
    kes: Any = Deletions()
    with capture_logs() as logs:
        await rounds(
            keepers.keep_reconciled(None, None, deletions, kes, every_s=0.0),  # type: ignore[arg-type]
            enough,
        )

    assert deletions.resumed >= 3
    assert kes.resumed >= 3
    assert [entry["event"] for entry in logs] == ["not reconciled; will try again", "jobs enqueued again"]


async def test_the_audit_log_is_pruned_at_once_and_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = datetime.now(UTC)

    def note(days_ago: int, name: str) -> None:
        monkeypatch.setattr("km_registry.store.audit.now", lambda: began - timedelta(days=days_ago))
        registry.people.create_group(admin, name)

    admin = Principal(registry.create_user("Root", is_admin=True)[0].id, is_admin=True)
    note(29, "kept")
    note(31, "forgotten")
    counts: list[int] = []
    prune, loop, enough = registry.people.prune_audit, asyncio.get_running_loop(), asyncio.Event()

    def pruning(before: datetime) -> int:
        counts.append(prune(before))
        if len(counts) == 1:
            note(40, "forgotten later")
        elif len(counts) == 3:
            loop.call_soon_threadsafe(enough.set)
        return counts[-1]

    monkeypatch.setattr(registry.people, "prune_audit", pruning)
    await rounds(keepers.keep_audit(registry, 30, every_s=0.0), enough)

    assert counts[:3] == [1, 1, 0]
    kept = [entry for entry in registry.people.audit(admin) if entry.action == "group.create"]
    assert [entry.at for entry in kept] == [began - timedelta(days=29)]


@pytest.mark.parametrize(("days", "pruned"), [(365, True), (0, False)])
async def test_the_audit_log_may_be_kept_for_ever(state: AppState, days: int, pruned: bool) -> None:
    state.settings.audit_days = days
    found = keepers.keepers_of(state)
    assert ("keep_audit" in {keeper.__name__ for keeper in found}) == pruned
    for keeper in found:
        keeper.close()


async def test_a_dead_private_redis_is_started_again(tmp_path: Path) -> None:
    private = PrivateRedis(tmp_path)
    private.start()
    private.wait_ready()
    first = private.pid
    assert first
    keeper = asyncio.create_task(keepers.keep_redis(private, every_s=0.01))
    try:
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(10):
            while private.pid in (None, first):  # noqa: ASYNC110  another process cannot set an event
                await asyncio.sleep(0.01)
        await asyncio.to_thread(private.wait_ready)
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        private.stop()
