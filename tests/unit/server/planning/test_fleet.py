"""The fewest replicas that answer a workload in time."""

from __future__ import annotations

import pytest

from server.planning.errors import PlanningError
from server.planning.fleet import Search, fastest_s, work_s
from server.planning.profile import Profile
from server.planning.workload import Workload

KMS = Workload(documents=40, questions_per_s=4.0, answer_tokens=20, first_token_p95_s=0.5)


def test_one_replica_fewer_is_too_late(profile: Profile) -> None:
    seen: list[str] = []
    search = Search(profile, KMS, progress=seen.append)
    fleet = search.in_time()
    assert fleet.in_time
    assert fleet.outcome.first_token_p95_s <= 0.5
    assert fleet.replicas > 1
    fewer = search._outcome(fleet.replicas - 1, profile.replica.slots)
    assert fewer.first_token_p95_s > 0.5 or fewer.utilisation > 1
    assert f"km: {fleet.replicas} replicas of 2 slots" in seen


def test_what_is_written_in_the_background_takes_replicas_too(profile: Profile) -> None:
    alone = Search(profile, KMS).in_time()
    beside = Search(profile, KMS, background_replicas=alone.replicas * 2.0).in_time()
    assert beside.replicas >= alone.replicas * 2
    assert beside.outcome.utilisation + alone.replicas * 2 / beside.replicas <= 1


def test_slots_that_bring_nothing_are_left_out(profile: Profile) -> None:
    one = KMS.model_copy(update={"documents": 1})
    many = profile.with_slots(16)
    assert Search(many, one).in_time().slots == 1
    assert Search(many, KMS.model_copy(update={"zipf": 0.0})).in_time().slots >= 8


def test_replicas_that_keep_up_however_late(profile: Profile) -> None:
    workload = KMS.model_copy(
        update={"mix": {"icl": 1.0}, "document_tokens": 3000, "questions_per_s": 1.0, "documents": 1000}
    )
    fleet = Search(profile, workload).keeping_up()
    assert not fleet.in_time
    assert fleet.outcome.throughput >= 0.95
    # A question takes 3.03 s of reading, half a second of writing, and finds its document read now and then.
    assert 3 <= fleet.replicas <= 4


def test_a_target_that_cannot_be_met(profile: Profile) -> None:
    workload = KMS.model_copy(update={"first_token_p95_s": 0.01})
    with pytest.raises(PlanningError, match=r"within 0\.01 s: where hardly anybody waits it takes 0\.1"):
        Search(profile, workload).in_time()


def test_more_replicas_than_are_looked_for(profile: Profile) -> None:
    for search in (Search.in_time, Search.keeping_up):
        with pytest.raises(PlanningError, match=r"More than 512 replicas are needed for 10000 .* \(km\)"):
            search(Search(profile, KMS.model_copy(update={"questions_per_s": 10_000.0})))


def test_the_work_of_a_question(profile: Profile) -> None:
    # The prompt of 32 tokens at 1000/s, 20 tokens at 40/s.
    assert work_s(profile, KMS) == pytest.approx(0.032 + 0.5)
    mixed = KMS.model_copy(update={"mix": {"km": 3.0, "rag": 1.0}})
    assert work_s(profile, mixed) == pytest.approx(0.032 + 0.128 / 4 + 0.5)


def test_the_fastest_first_token(profile: Profile) -> None:
    assert fastest_s(profile, KMS) == pytest.approx(0.05 + 0.032)
    assert fastest_s(profile, KMS.model_copy(update={"mix": {"icl": 1.0}})) == pytest.approx(0.05 + 3.032)
