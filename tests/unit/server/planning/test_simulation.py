"""Workloads played to replicas: against closed forms, and against what routing is there to reach."""

from __future__ import annotations

from itertools import pairwise
from math import exp, inf

import pytest
from scipy.optimize import brentq

from server.engine import residency
from server.engine.popularity import Popularity
from server.planning.errors import PlanningError
from server.planning.profile import Profile, fixed
from server.planning.simulation import Outcome, simulate
from server.planning.workload import Workload
from tests.unit.server.planning.conftest import replica
from tests.unit.server.planning.erlang import mean_wait

BASE = Workload(mix={"base": 1.0}, answer_tokens=1, questions_per_s=1.0)


def test_answers_by_several_at_a_time_wait_as_erlang_says() -> None:
    profile = fixed(4.0, slots=1, places=1, running=5)
    found = simulate(profile, BASE, 1, requests=12_000)
    assert found.answer_mean_s == pytest.approx(4 + mean_wait(1.0, 4.0, 5), rel=0.1)
    assert found.throughput == pytest.approx(1, rel=0.03)
    assert found.utilisation == pytest.approx(0.8, rel=0.05)
    assert (found.hit_rate, found.in_memory_rate, found.swaps) == (None, None, 0)


def test_answers_that_share_a_replica_take_as_long_as_theory_says() -> None:
    # M/G/1 with processor sharing: S / (1 - rho), whatever the lengths.
    profile = Profile(replica=replica(tokens_per_s={1: 1 / 0.6}, running=1000))
    workload = BASE.model_copy(update={"answer_lengths": "fixed"})
    assert simulate(profile, workload, 1, requests=12_000).answer_mean_s == pytest.approx(1.5, rel=0.05)


def test_clients_that_ask_again_keep_replicas_as_busy_as_there_are_clients() -> None:
    profile = fixed(2.0, slots=8, places=8, running=8)
    workload = BASE.model_copy(update={"answer_lengths": "fixed"})
    found = simulate(profile, workload, 2, clients=12, requests=1200)
    assert found.throughput == pytest.approx(6.0, rel=0.01)
    assert found.in_flight == pytest.approx(12, rel=0.01)
    assert found.answer_mean_s == pytest.approx(2)


def test_with_the_least_recently_used_it_would_hit_as_che_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # At a half-life of one use a later use outweighs all before it: the least recently used leaves.
    monkeypatch.setattr(residency, "Popularity", lambda half_life: Popularity(1))
    workload = Workload(documents=100, answer_tokens=1, answer_lengths="fixed")
    profile = fixed(1.0, slots=8, places=8, running=1)
    found = simulate(profile, workload, 1, clients=1, requests=8000).hit_rate

    sums = [0.0, *workload.cumulative_popularity]
    shares = [after - before for before, after in pairwise(sums)]
    time = brentq(lambda t: sum(1 - exp(-share * t) for share in shares) - 8, 1, 1000)
    assert found == pytest.approx(sum(share * (1 - exp(-share * time)) for share in shares), abs=0.02)


def test_one_request_at_a_time_hits_nearly_as_often_as_can_be() -> None:
    workload = Workload(documents=100, answer_tokens=1)
    found = simulate(fixed(1.0, slots=8, places=8, running=1), workload, 1, clients=1, requests=5000)
    assert found.hit_rate is not None
    assert 0.85 * workload.best_hit_rate(8) < found.hit_rate < workload.best_hit_rate(8)


@pytest.fixture(scope="module")
def eight() -> dict[str, Outcome]:
    """512 KMs by Zipf's law, 8 replicas of 8 slots, four requests in flight for each; by their names."""
    workload = Workload(documents=512, answer_tokens=1, answer_lengths="fixed")
    silent = fixed(1.0, slots=8, places=64, running=4, load_ms=300, swap_ms=100)
    telling = silent.model_copy(update={"replica": silent.replica.model_copy(update={"told_every_s": 1.0})})
    three = workload.model_copy(update={"gateways": 3})
    return {
        "told": simulate(telling, workload, 8, clients=32, requests=4000, warm_up=4000),
        "told, 3 gateways": simulate(telling, three, 8, clients=32, requests=4000, warm_up=4000),
        "not told, 3 gateways": simulate(silent, three, 8, clients=32, requests=4000, warm_up=4000),
        "random": simulate(silent, workload, 8, clients=32, requests=2000, warm_up=2000, routing="random"),
        "one": simulate(silent, workload, 1, clients=4, requests=1500),
    }


@pytest.mark.parametrize("name", ["told", "told, 3 gateways"])
def test_requests_find_their_km_nine_tenths_as_often_as_can_be(eight: dict[str, Outcome], name: str) -> None:
    best = Workload(documents=512).best_hit_rate(64)
    assert 0.9 * best <= (eight[name].hit_rate or 0) < best


@pytest.mark.parametrize("name", ["told", "told, 3 gateways", "not told, 3 gateways"])
def test_routing_is_worth_it(eight: dict[str, Outcome], name: str) -> None:
    assert (eight[name].hit_rate or 0) >= 2 * (eight["random"].hit_rate or 0)
    assert eight[name].throughput >= 7 * eight["one"].throughput
    assert (eight[name].in_memory_rate or 0) >= 1.4 * (eight["random"].in_memory_rate or 0)


def test_with_the_least_busy_it_is_hardly_ever_there() -> None:
    workload = Workload(documents=512, answer_tokens=1)
    profile = fixed(1.0, slots=8, places=64, running=4)
    found = simulate(profile, workload, 8, clients=32, requests=1000, routing="least-loaded")
    assert found.hit_rate is not None
    assert found.hit_rate < 0.4


def test_the_same_seed_is_the_same_run(profile: Profile) -> None:
    workload = Workload(mix={"km": 1, "rag": 1, "icl": 1}, document_tokens=500, gateways=2)

    def found(seed: int) -> Outcome:
        return simulate(profile, workload, 2, requests=300, seed=seed)

    assert found(1) == found(1) != found(2)


def test_replicas_that_are_overrun_are_infinitely_late() -> None:
    profile = fixed(4.0, slots=1, places=1, running=1)
    found = simulate(profile, BASE, 1, requests=200)
    assert found.first_token_p95_s == inf
    assert found.throughput == pytest.approx(0.25, rel=0.05)


def test_more_than_are_sent_to_a_replica_wait_before_it() -> None:
    workload = Workload(documents=50, answer_tokens=1, answer_lengths="fixed")
    profile = fixed(1.0, slots=4, places=8, running=4)
    limited = profile.model_copy(update={"replica": profile.replica.model_copy(update={"ongoing": 1})})
    assert simulate(profile, workload, 2, clients=8, requests=400).throughput > 4
    assert simulate(limited, workload, 2, clients=8, requests=400).throughput == pytest.approx(2, rel=0.01)


def test_what_a_mode_waits_for(profile: Profile) -> None:
    def first(mode: str) -> float:
        workload = Workload(mix={mode: 1}, documents=1, document_tokens=2000, questions_per_s=0.01)
        return simulate(profile, workload, 1, requests=20, warm_up=2).first_token_p50_s

    assert first("base") == first("km") == pytest.approx(0.05 + 0.032)
    assert first("rag") == first("km+rag") == pytest.approx(0.05 + 0.160)
    # The document is kept from the question before.
    assert first("icl") == pytest.approx(0.05 + 0.032)


@pytest.mark.parametrize("wrong", [{"replicas": 0}, {"requests": 0}, {"clients": 0}], ids=str)
def test_nothing_to_simulate(profile: Profile, wrong: dict[str, int]) -> None:
    with pytest.raises(PlanningError, match="at least one of each"):
        simulate(profile, Workload(), **{"replicas": 1, **wrong})


def test_a_document_that_is_too_long_for_the_context(profile: Profile) -> None:
    with pytest.raises(PlanningError, match=r"5032 tokens \(mode icl\).*context of 4096"):
        simulate(profile, Workload(mix={"icl": 1}, document_tokens=5000), 1)
