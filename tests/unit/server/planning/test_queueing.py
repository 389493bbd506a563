"""Documents that wait for a trainer: as queueing theory has it."""

from __future__ import annotations

from statistics import mean

import pytest

from server.planning.queueing import sojourns
from tests.unit.server.planning.erlang import mean_wait


def test_service_of_one_length() -> None:
    # Pollaczek and Khinchine, M/D/1: the wait is rho / (2 (1 - rho)) services.
    found = sojourns(0.7, lambda _: 1.0, 1, jobs=60_000)
    assert mean(found) == pytest.approx(1 + 0.7 / (2 * 0.3), rel=0.03)


def test_service_of_random_length_by_several() -> None:
    found = sojourns(3.2, lambda drawn: drawn.expovariate(1.0), 4, jobs=60_000)
    assert mean(found) == pytest.approx(1 + mean_wait(3.2, 1.0, 4), rel=0.03)


def test_nobody_waits_where_there_are_many() -> None:
    assert sojourns(1.0, lambda _: 2.0, 50, jobs=200) == pytest.approx([2.0] * 200)


def test_the_same_seed_is_the_same_queue() -> None:
    def drawn(seed: int) -> list[float]:
        return sojourns(1.0, lambda drawn: drawn.random(), 1, jobs=20, seed=seed)

    assert drawn(1) == drawn(1) != drawn(2)
