"""To which replica a request goes."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.routing import Router

REPLICAS = [f"replica-{number}" for number in range(8)]
IDLE = dict.fromkeys(REPLICAS, 0)
ADAPTERS = [f"km_{number}" for number in range(400)]

replica_sets = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True)


@pytest.fixture
def router() -> Router:
    return Router(slots=4)


def test_the_order_of_homes_is_the_same_in_every_process(router: Router) -> None:
    code = (
        "from server.engine.routing import Router\n"
        f"print(*Router(slots=9).homes('km_1', {sorted(REPLICAS)!r}))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == router.homes("km_1", REPLICAS)
    # Pinned: gateways of two versions must agree while one takes the other's place.
    assert [name[-1] for name in router.homes("km_1", REPLICAS)] == list("42106537")


def test_another_seed_is_another_order(router: Router) -> None:
    others = Router(slots=4, seed=-1)
    assert [others.homes(one, REPLICAS) for one in ADAPTERS] != [
        router.homes(one, REPLICAS) for one in ADAPTERS
    ]


@given(replicas=replica_sets, adapter=st.text(max_size=8), data=st.data())
def test_the_order_hangs_neither_on_other_replicas_nor_on_how_they_are_listed(
    replicas: list[str], adapter: str, data: st.DataObject
) -> None:
    router = Router(slots=4)
    gone = data.draw(st.sampled_from(replicas))
    left = [one for one in data.draw(st.permutations(replicas)) if one != gone]
    assert router.homes(adapter, left) == [one for one in router.homes(adapter, replicas) if one != gone]


def test_homes_are_spread_evenly(router: Router) -> None:
    firsts = Counter(router.homes(adapter, REPLICAS)[0] for adapter in ADAPTERS)
    assert set(firsts) == set(REPLICAS)
    # 50 each on average, with a standard deviation of 6.6.
    assert 30 <= min(firsts.values()) <= max(firsts.values()) <= 70


def test_only_its_own_adapters_move_when_a_replica_leaves(router: Router) -> None:
    before = {adapter: router.rank(adapter, IDLE)[0] for adapter in ADAPTERS}
    left = {replica: 0 for replica in REPLICAS if replica != "replica-3"}
    after = {adapter: router.rank(adapter, left)[0] for adapter in ADAPTERS}
    moved = {adapter for adapter in ADAPTERS if before[adapter] != after[adapter]}
    assert moved == {adapter for adapter in ADAPTERS if before[adapter] == "replica-3"}


@given(loads=st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 50), max_size=10))
def test_every_live_replica_is_ranked_once(loads: dict[str, int]) -> None:
    router = Router(slots=2)
    for adapter in ("km_1", None):
        assert sorted(router.rank(adapter, loads)) == sorted(loads)


@given(
    replicas=st.integers(1, 8),
    spread=st.sampled_from((1.0, 1.25, 2.5)),
    asked=st.lists(st.integers(0, 5), min_size=1, max_size=120),
)
def test_no_replica_gets_much_more_than_its_share(replicas: int, spread: float, asked: list[int]) -> None:
    router = Router(slots=2, spread=spread)
    loads = dict.fromkeys(REPLICAS[:replicas], 0)
    for one in asked:
        chosen = router.rank(f"km_{one}", loads)[0]
        router.sent(f"km_{one}", chosen)
        loads[chosen] += 1
        # A request and a half for each slot, and the one that was just sent.
        assert max(loads.values()) <= ceil(spread * sum(loads.values()) / replicas) + 3 + 1


def test_the_base_model_goes_to_the_least_busy(router: Router) -> None:
    loads = {replica: 9 - number for number, replica in enumerate(REPLICAS)}
    assert router.rank(None, loads) == list(reversed(REPLICAS))


def test_an_adapter_goes_where_it_is(router: Router) -> None:
    last = router.homes("km_1", REPLICAS)[-1]
    assert router.rank("km_1", IDLE | {last: 1}, {last: {"km_1", "km_2"}, "gone": {"km_1"}})[0] == last


def test_an_adapter_that_is_at_two_goes_to_the_less_busy(router: Router) -> None:
    there = {"replica-2": ["km_1"], "replica-5": ["km_1"]}
    assert router.rank("km_1", IDLE | {"replica-2": 1}, there)[:2] == ["replica-5", "replica-2"]
    assert router.rank("km_1", IDLE | {"replica-5": 1}, there)[:2] == ["replica-2", "replica-5"]


def test_an_adapter_that_is_nowhere_goes_to_its_first_home(router: Router) -> None:
    homes = router.homes("km_1", REPLICAS)
    assert router.rank("km_1", IDLE | {homes[0]: 3, homes[1]: 1}) == [homes[0], *homes[2:], homes[1]]
    assert router.rank("km_1", IDLE) == homes


def test_where_replicas_tell_it_goes_to_the_less_busy_of_its_first_two() -> None:
    router = Router(slots=4, told=True)
    homes = router.homes("km_1", REPLICAS)
    assert router.rank("km_1", IDLE | {homes[0]: 3, homes[1]: 1})[:2] == [homes[1], homes[0]]
    assert router.rank("km_1", IDLE) == homes


def test_where_it_is_too_busy_it_goes_to_its_next_home(router: Router) -> None:
    homes = router.homes("km_1", REPLICAS)
    ranked = router.rank("km_1", IDLE | {homes[0]: 30}, {homes[0]: {"km_1"}})
    assert ranked == [*homes[1:], homes[0]]


def test_what_was_sent_just_now_is_followed(router: Router) -> None:
    homes = router.homes("km_1", REPLICAS)
    router.sent("km_1", homes[4])
    assert router.rank("km_1", IDLE | {homes[4]: 1})[0] == homes[4]
    assert router.rank("km_2", IDLE)[0] == router.homes("km_2", REPLICAS)[0]


def test_only_the_latest_are_remembered(router: Router) -> None:
    far = router.homes("km_0", REPLICAS)[-1]
    for number in range(16):
        router.sent(f"km_{number}", far)
    assert router.rank("km_0", IDLE)[0] == far
    router.sent("km_0", far)
    router.sent(None, far)
    router.sent("km_16", far)
    assert router.rank("km_0", IDLE)[0] == far
    assert router.rank("km_1", IDLE)[0] == router.homes("km_1", REPLICAS)[0]


def test_where_replicas_tell_fewer_are_remembered() -> None:
    router = Router(slots=2, told=True)
    for number in range(3):
        router.sent(f"km_{number}", "replica-1")
    there = [router.rank(f"km_{number}", IDLE)[0] == "replica-1" for number in range(3)]
    assert there == [router.homes("km_0", REPLICAS)[0] == "replica-1", True, True]


def test_a_replica_that_left_is_not_remembered(router: Router) -> None:
    far = router.homes("km_1", REPLICAS)[-1]
    router.sent("km_1", far)
    router.rank("km_2", {replica: 0 for replica in REPLICAS if replica != far})
    assert router.rank("km_1", IDLE)[0] != far


def test_no_replica_at_all(router: Router) -> None:
    assert router.rank("km_1", {}) == router.rank(None, {}) == []


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"spread": 0.9}, {"spread": float("nan")}], ids=str)
def test_sizes_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give at least 1"):
        Router(**{"slots": 4, **wrong})  # type: ignore[arg-type]


def test_popular_adapters_stay_at_few_replicas() -> None:
    """Adapters of Zipf's law, each request lasting as long as 16 others take to come."""
    drawn, router = random.Random(0), Router(slots=4)
    weights = [1 / (rank + 1) for rank in range(len(ADAPTERS))]
    loads, running, places = dict(IDLE), [], {adapter: set() for adapter in ADAPTERS}
    for adapter in drawn.choices(ADAPTERS, weights, k=2000):
        chosen = router.rank(adapter, loads)[0]
        router.sent(adapter, chosen)
        places[adapter].add(chosen)
        loads[chosen] += 1
        running.append(chosen)
        if len(running) > 16:
            loads[running.pop(0)] -= 1
    assert max(len(places[adapter]) for adapter in ADAPTERS[1:20]) <= 3
