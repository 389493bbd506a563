"""Simulated time."""

from __future__ import annotations

import pytest

from server.planning.clock import Clock


def test_things_happen_in_the_order_of_their_times_then_of_planning() -> None:
    clock, seen = Clock(), []
    for seconds, what in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        clock.after(seconds, lambda what: seen.append((clock.now, what)), what)
    for _ in range(3):
        clock.step()
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c")]
    with pytest.raises(IndexError):
        clock.step()
