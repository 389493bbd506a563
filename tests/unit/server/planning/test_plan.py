"""A plan, and what it costs."""

from __future__ import annotations

import pytest

from server.planning.errors import PlanningError
from server.planning.plan import Plan, planned
from server.planning.profile import Profile
from server.planning.workload import Workload
from tests.unit.server.planning.conftest import everything

WORKLOAD = Workload(
    documents=40, questions_per_s=2.0, answer_tokens=20, document_tokens=1000, uploads_per_day=1000
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Of the workload above."""
    return planned(everything(), WORKLOAD)


def test_three_ways_are_compared(plan: Plan) -> None:
    assert [way.name for way in plan.ways] == ["km", "icl", "rag"]
    assert all(way.fleet is not None for way in plan.ways)


def test_trainers_keep_up(plan: Plan) -> None:
    # A training takes 100 s, and comes every 86.4 s.
    assert plan.trainers.count == 2
    assert plan.trainers.utilisation == pytest.approx(100 / 86.4 / 2)
    assert 100 < plan.trainers.trained_p95_s < 500


def test_costs_are_replicas_and_trainers_over_answers(plan: Plan) -> None:
    millions_an_hour = 2.0 * 3600 / 1e6
    kms, _, passages = plan.ways
    assert plan.trainer_cost_per_million == pytest.approx(2 * 2.0 / millions_an_hour)
    assert kms.fleet is not None
    assert kms.cost_per_million == pytest.approx((kms.fleet.replicas + 2 * 2.0) / millions_an_hour)
    assert passages.fleet is not None
    assert passages.cost_per_million == pytest.approx(passages.fleet.replicas / millions_an_hour)


def test_memory_and_disk_are_those_of_the_kms(plan: Plan) -> None:
    kms = plan.ways[0].fleet
    assert kms is not None
    assert plan.replica_memory_gb == pytest.approx(2.0 + (4 + kms.slots) * 0.01)
    assert plan.disk_gb == pytest.approx(0.4)
    assert plan.best_hit_rate == pytest.approx(WORKLOAD.best_hit_rate(kms.replicas * kms.slots))


def test_without_kms_nothing_is_trained(profile: Profile) -> None:
    found = planned(profile, WORKLOAD.model_copy(update={"mix": {"rag": 1.0}, "questions_per_s": 0.5}))
    assert found.trainers.count == found.trainer_cost_per_million == found.disk_gb == 0
    assert found.best_hit_rate is None
    assert found.replica_memory_gb == 2.0


def test_without_uploads_there_is_no_trainer(profile: Profile) -> None:
    found = planned(profile, WORKLOAD.model_copy(update={"uploads_per_day": 0.0, "questions_per_s": 0.5}))
    assert found.trainers.count == 0
    assert found.disk_gb > 0


def test_a_document_that_fits_into_no_context_is_answered_by_kms(profile: Profile) -> None:
    found = planned(profile, WORKLOAD.model_copy(update={"document_tokens": 9000, "questions_per_s": 0.5}))
    assert (found.ways[1].fleet, found.ways[1].cost_per_million) == (None, None)
    assert "9032 tokens (mode icl)" in found.ways[1].why


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"trained_p95_s": 50.0}, "trained in 100 s, which is more than the 50 s"),
        ({"uploads_per_day": 1e8}, "More than 10000 trainers"),
        ({"questions_per_s": 1e6}, "More than 512 replicas"),
    ],
)
def test_what_cannot_be_planned(profile: Profile, changed: dict[str, float], said: str) -> None:
    with pytest.raises(PlanningError, match=said):
        planned(profile, WORKLOAD.model_copy(update=changed))
