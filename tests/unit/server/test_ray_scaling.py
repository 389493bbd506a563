"""How many replicas there are to be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.ray_scaling import Scaling


def context(requests: float, *, now: int = 2, waits: dict[str, float] | None = None) -> Any:
    return SimpleNamespace(
        total_num_requests=requests,
        current_num_replicas=now,
        aggregated_metrics=None if waits is None else {"first_token_s": waits},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
    )


@pytest.mark.parametrize(("requests", "replicas"), [(0, 1), (8, 1), (9, 2), (30, 4), (100, 4)])
def test_as_many_as_the_requests_need_within_the_bounds(requests: float, replicas: int) -> None:
    assert Scaling(target_requests=8)(context(requests)) == (replicas, {})


@pytest.mark.parametrize(
    ("requests", "waits", "replicas"),
    [(4, {"a": 0.9, "b": 0.3}, 3), (4, {"a": 0.5, "b": 0.3}, 1), (0, {"a": 0.9, "b": 0.9}, 1), (4, {}, 1)],
    ids=["slow", "fast", "slow once, nothing to do now", "not told yet"],
)
def test_one_more_while_first_tokens_are_late(
    requests: float, waits: dict[str, float], replicas: int
) -> None:
    scaling = Scaling(target_requests=8, target_first_token_s=0.5)
    assert scaling(context(requests, waits=waits)) == (replicas, {})
