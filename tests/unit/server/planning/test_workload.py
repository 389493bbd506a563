"""What is asked of an installation."""

from __future__ import annotations

from typing import Any

import pytest

from server.planning.errors import PlanningError
from server.planning.models import checked
from server.planning.workload import Workload


def test_popularity_is_zipfs() -> None:
    shares = Workload(documents=3, zipf=1.0).cumulative_popularity
    assert shares == pytest.approx([6 / 11, 9 / 11, 1])
    assert Workload(documents=4, zipf=0).cumulative_popularity == pytest.approx([0.25, 0.5, 0.75, 1])


def test_the_best_that_slots_can_do() -> None:
    workload = Workload(documents=512)
    assert workload.best_hit_rate(64) == pytest.approx(0.696, abs=0.0005)
    assert workload.best_hit_rate(1000) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"documents": 0}, "documents: Input should be greater than or equal to 1"),
        ({"zipf": float("nan")}, "zipf"),
        ({"questions_per_s": 0}, "questions_per_s"),
        ({"mix": {}}, "above 0, like km=3,rag=1"),
        ({"mix": {"km": 0}}, "above 0"),
        ({"mix": {"kn": 1}}, "mix.kn"),
        ({"answers": 3}, "sets answers, which is not known"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanningError) as caught:
        checked(Workload, wrong, "The workload")
    assert str(caught.value).startswith("The workload")
    assert said in str(caught.value)
