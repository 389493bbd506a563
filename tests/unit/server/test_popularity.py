"""How much adapters are asked for, of late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.popularity import Popularity


def after(uses: list[int], half_life: int = 4) -> Popularity:
    popularity = Popularity(half_life)
    for adapter in uses:
        popularity.used(adapter)
    return popularity


def test_what_is_used_more_often_is_more_popular() -> None:
    popularity = after([1, 1, 1, 2])
    assert popularity(1) > popularity(2) > popularity(3)


def test_of_what_is_used_as_often_the_latest_is_more_popular() -> None:
    popularity = after([1, 2, 3, 1, 2, 3])
    assert popularity(1) < popularity(2) < popularity(3)


def test_a_use_counts_half_one_half_life_later() -> None:
    # Two uses, then four of others: worth as much as one use now.
    popularity = Popularity(half_life=4)
    popularity.used(1, 2)
    for _ in range(4):
        popularity.used(2)
    popularity.forget(2)
    equal = Popularity(half_life=4)
    equal.used(2, 5)
    equal.used(1)
    assert popularity(1) == pytest.approx(equal(1))


def test_several_at_once_are_as_many_uses() -> None:
    popularity = Popularity(half_life=1000)
    popularity.used(1, 3)
    popularity.used(2, 2)
    assert popularity(1) > popularity(2)


def test_the_popular_of_yesterday_is_outdone_in_one_half_life() -> None:
    assert after([1] * 1000 + [2] * 3)(2) < after([1] * 1000 + [2] * 3)(1)
    assert after([1] * 1000 + [2] * 5)(2) > after([1] * 1000 + [2] * 5)(1)


def test_what_is_forgotten_was_never_used() -> None:
    popularity = after([1, 1])
    popularity.forget(1)
    popularity.forget(7)
    assert popularity(1) == Popularity(4)(1)


def test_no_half_life() -> None:
    with pytest.raises(ValueError, match="half-life of 0"):
        Popularity(0)


@given(uses=st.lists(st.integers(0, 3), max_size=200), half_life=st.integers(1, 50))
def test_scores_are_the_sums_that_they_stand_for(uses: list[int], half_life: int) -> None:
    popularity = after(uses, half_life)
    now = len(uses)
    for adapter in set(uses):
        score = sum(2 ** ((at - now) / half_life) for at, one in enumerate(uses, 1) if one == adapter)
        assert 2 ** (popularity(adapter) - now / half_life) == pytest.approx(score)
