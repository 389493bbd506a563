"""Background work that runs once per key."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from server.once import Once


class Work:
    """Runs when it is let; counts how often it began."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go_on = asyncio.Event()
        self.began = 0
        self.ended = 0
        self._error = error

    async def __call__(self) -> int:
        self.began += 1
        await self.go_on.wait()
        self.ended += 1
        if self._error is not None:
            raise self._error
        return self.ended


async def test_whoever_asks_while_it_runs_waits_for_the_same() -> None:
    once, work = Once[str, int]("work"), Work()
    both = asyncio.gather(once.done("a", work), once.done("a", work))
    await asyncio.sleep(0)
    assert once.keys() == ["a"]
    work.go_on.set()
    assert await both == [1, 1]
    assert once.keys() == []


async def test_keys_do_not_wait_for_each_other() -> None:
    once, held, free = Once[str, int]("work"), Work(), Work()
    first = once.begin("a", held)
    free.go_on.set()
    assert await once.done("b", free) == 1
    assert once.keys() == ["a"]
    held.go_on.set()
    await first


async def test_when_it_has_ended_it_runs_again() -> None:
    once, work = Once[str, int]("work"), Work()
    work.go_on.set()
    assert [await once.done("a", work), await once.done("a", work)] == [1, 2]


async def test_it_goes_on_without_those_who_waited() -> None:
    once, work = Once[str, int]("work"), Work()
    waiting = asyncio.create_task(once.done("a", work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    work.go_on.set()
    await once.settled()
    assert work.ended == 1


@pytest.mark.parametrize("wait", ["idle", "settled"])
async def test_a_failure_is_raised_to_who_asked_and_not_to_who_only_waits(wait: str) -> None:
    once, work = Once[str, int]("work"), Work(error=ValueError("what the document says"))
    task = once.begin("a", work)
    work.go_on.set()
    with capture_logs() as logs:
        await (once.idle("a") if wait == "idle" else once.settled())
    with pytest.raises(ValueError, match="what the document says"):
        await task
    said = {"event": "interrupted", "work": "work", "key": "a", "error": "ValueError", "log_level": "error"}
    assert logs == [said]


async def test_waiting_for_what_does_not_run_returns_at_once() -> None:
    once = Once[str, int]("work")
    await once.idle("a")
    await once.settled()
