"""The fence of a gateway, by its own clock and by what the database found."""

from __future__ import annotations

import pytest

from server.fencing import FENCE_S, Fence, FencedError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fence(clock: Clock) -> Fence:
    made = Fence(clock)
    made.joined(clock.now)
    return made


def test_without_others_it_is_open_for_ever(clock: Clock) -> None:
    fence = Fence(clock)
    clock.now += 1e9
    fence.check()
    assert fence.is_open
    assert not fence.must_reconcile


def test_it_closes_by_itself(fence: Fence, clock: Clock) -> None:
    clock.now += FENCE_S - 0.01
    assert fence.is_open
    clock.now += 0.01
    assert not fence.is_open
    with pytest.raises(FencedError, match="lost touch"):
        fence.check()


def test_it_counts_from_when_the_heartbeat_was_begun(fence: Fence, clock: Clock) -> None:
    begun = clock.now
    clock.now += 6
    fence.beaten(begun, counted=True)
    clock.now = begun + FENCE_S
    assert not fence.is_open


def test_once_closed_a_heartbeat_alone_does_not_open_it(fence: Fence, clock: Clock) -> None:
    clock.now += FENCE_S
    fence.beaten(clock.now, counted=True)
    assert fence.must_reconcile
    assert not fence.is_open
    fence.trust(fence.lapses)
    assert fence.is_open


def test_what_the_database_missed_closes_it_too(fence: Fence, clock: Clock) -> None:
    fence.beaten(clock.now, counted=False)
    assert not fence.is_open


def test_who_lapses_again_while_catching_up_is_not_trusted(fence: Fence, clock: Clock) -> None:
    fence.beaten(clock.now, counted=False)
    first = fence.lapses
    fence.beaten(clock.now, counted=False)
    fence.trust(first)
    assert fence.must_reconcile


def test_who_left_never_opens_again(fence: Fence, clock: Clock) -> None:
    fence.close()
    assert not fence.is_open
