"""Comparing clocks."""

from __future__ import annotations

import time

import pytest
from redis import Redis

from km_registry.clocks import ahead_s, redis_clock, said


def test_the_quickest_answer_tells() -> None:
    ticks = iter([0.0, 8.0, 10.0, 10.2, 20.0, 24.0])
    theirs = iter([100.0, 15.1, 100.0])
    # The second took 0.2 s; in its middle our clock stood at 10.1.
    assert ahead_s(lambda: next(theirs), lambda: next(ticks)) == pytest.approx(5.0)


def test_redis_tells_its_time(redis_server: Redis) -> None:
    assert abs(ahead_s(redis_clock(redis_server))) < 1.0
    behind = ahead_s(redis_clock(redis_server), lambda: time.time() + 90)
    assert behind == pytest.approx(-90, abs=1)


@pytest.mark.parametrize(
    ("skew", "words"), [(3.0, "3.0 s behind that of Redis"), (-4, "4.0 s ahead of that")]
)
def test_people_are_told_which_is_behind(skew: float, words: str) -> None:
    assert words in said("Redis", skew)
    assert "chrony" in said("Redis", skew)
