"""Which adapter is where: what is decided for single events."""

from __future__ import annotations

import pytest

from server.engine.residency import Decision, IntegrityError, Move, Residency


@pytest.fixture
def residency() -> Residency:
    """Two slots, three places in memory."""
    return Residency(slots=2, places=3)


def settle(residency: Residency, decision: Decision) -> list[int]:
    """Make all moves, and those that follow; every ticket that may run, in order."""
    admitted = list(decision.admitted)
    for move in decision.moves:
        admitted += settle(residency, residency.moved(move))
    residency.check()
    return admitted


def fill(residency: Residency, *adapters: int) -> None:
    """Ask one after the other; ticket 1000 + adapter."""
    for adapter in adapters:
        assert settle(residency, residency.ask(1000 + adapter, adapter)) == [1000 + adapter]
        assert settle(residency, residency.done(1000 + adapter)) == []


@pytest.mark.parametrize(("slots", "places"), [(0, 1), (2, 1)])
def test_sizes_that_make_no_sense(slots: int, places: int) -> None:
    with pytest.raises(ValueError, match="KM_MAX_CPU_LORAS"):
        Residency(slots=slots, places=places)


def test_the_first_request_waits_for_the_move_and_the_second_for_the_same(residency: Residency) -> None:
    first = residency.ask(1, 7)
    assert first == Decision((Move(7, load=True),))
    assert residency.ask(2, 7) == Decision()
    assert residency.moved(first.moves[0]) == Decision(admitted=(1, 2))
    assert residency.ask(3, 7) == Decision(admitted=(3,))
    counts = residency.counts
    assert (counts.found_on_disk, counts.found_in_memory, counts.found_in_slot) == (1, 0, 2)
    assert (counts.loads, counts.swaps, counts.pinned, counts.idle, counts.free) == (1, 1, 1, 0, 1)


def test_a_ticket_is_for_one_request(residency: Residency) -> None:
    residency.ask(1, 7)
    with pytest.raises(ValueError, match="ticket 1"):
        residency.ask(1, 8)


def test_the_popular_stays_in_its_slot_and_in_memory(residency: Residency) -> None:
    fill(residency, 1, 1, 2, 3)
    assert residency.in_slots == {1, 3}
    assert residency.ask(5, 4) == Decision((Move(4, drop=(2,), vacate=(3,), load=True),))


def test_the_popular_of_yesterday_leaves(residency: Residency) -> None:
    # A use counts half as much sixteen uses later: eight for every slot.
    fill(residency, *[1] * 20, *[2, 3] * 20)
    assert residency.in_slots == {2, 3}


def test_what_leaves_memory_is_popular_no_longer(residency: Residency) -> None:
    fill(residency, 1, 1, 1)
    residency.forget(1)
    fill(residency, 1, 2, 2, 3)
    assert residency.in_slots == {2, 3}


def test_the_slot_that_was_idle_longest_is_taken(residency: Residency) -> None:
    fill(residency, 1, 2)
    settle(residency, residency.ask(3, 1))
    settle(residency, residency.done(3))
    decision = residency.ask(4, 3)
    assert decision == Decision((Move(3, vacate=(2,), load=True),))
    settle(residency, decision)
    assert residency.in_slots == {1, 3}
    assert residency.in_memory == {1, 2, 3}
    # Back from memory: no load.
    assert residency.ask(5, 2) == Decision((Move(2, vacate=(1,)),))
    assert residency.counts.found_in_memory == 1


def test_memory_gives_up_what_was_used_longest_ago(residency: Residency) -> None:
    fill(residency, 1, 2, 3)
    assert residency.ask(5, 4) == Decision((Move(4, drop=(1,), vacate=(2,), load=True),))
    assert residency.in_memory == {2, 3, 4}
    assert (residency.counts.left_memory, residency.counts.left_slot) == (1, 2)


def test_what_leaves_memory_leaves_its_slot() -> None:
    residency = Residency(slots=2, places=2)
    fill(residency, 1, 2)
    assert residency.ask(5, 3) == Decision((Move(3, drop=(1,), load=True),))
    assert residency.in_slots == {2, 3}


def test_pinned_adapters_stay(residency: Residency) -> None:
    settle(residency, residency.ask(1, 1))
    settle(residency, residency.ask(2, 2))
    assert settle(residency, residency.ask(3, 3)) == []
    assert residency.in_slots == {1, 2}
    assert residency.counts.waiting == 1
    assert settle(residency, residency.done(2)) == [3]
    assert residency.in_slots == {1, 3}


def test_who_waits_gets_the_oldest_turn_and_its_adapter_queues_behind(residency: Residency) -> None:
    settle(residency, residency.ask(1, 1))
    settle(residency, residency.ask(2, 2))
    settle(residency, residency.ask(3, 3))
    # One waits: the older turn is closed, the younger is not.
    assert settle(residency, residency.ask(4, 2)) == [4]
    assert settle(residency, residency.ask(5, 1)) == []
    assert settle(residency, residency.done(1)) == [3]
    assert residency.in_slots == {2, 3}
    assert residency.counts.waiting == 1


def test_all_who_wait_for_an_adapter_come_in_together(residency: Residency) -> None:
    settle(residency, residency.ask(1, 1))
    settle(residency, residency.ask(2, 2))
    for ticket in (3, 4, 5):
        assert settle(residency, residency.ask(ticket, 3)) == []
    assert settle(residency, residency.done(1)) == [3, 4, 5]
    assert residency.counts.found_on_disk == 3


def test_adapters_come_in_the_order_of_arrival(residency: Residency) -> None:
    settle(residency, residency.ask(1, 1))
    settle(residency, residency.ask(2, 2))
    for ticket, adapter in ((3, 3), (4, 4), (5, 3), (6, 5)):
        assert settle(residency, residency.ask(ticket, adapter)) == []
    assert settle(residency, residency.done(2)) == [3, 5]
    assert settle(residency, residency.done(1)) == [4]


def test_better_priorities_come_first(residency: Residency) -> None:
    settle(residency, residency.ask(1, 1))
    settle(residency, residency.ask(2, 2))
    assert settle(residency, residency.ask(3, 3, priority=10)) == []
    assert settle(residency, residency.ask(4, 4)) == []
    assert settle(residency, residency.done(1)) == [4]


def test_requests_that_are_given_up_leave_no_trace(residency: Residency) -> None:
    move = residency.ask(1, 1).moves[0]
    assert residency.done(1) == Decision()
    assert residency.done(1) == Decision()
    # On its way it is pinned, then idle.
    assert residency.busy(1)
    assert residency.moved(move) == Decision()
    assert residency.counts.idle == 1
    settle(residency, residency.ask(2, 2))
    settle(residency, residency.ask(3, 3))
    settle(residency, residency.ask(4, 4))
    assert residency.done(4) == Decision()
    assert residency.counts.waiting == 0
    residency.check()


def test_a_move_that_fails_gives_up_its_requests_and_lets_others_in(residency: Residency) -> None:
    settle(residency, residency.ask(1, 1))
    move = residency.ask(2, 2).moves[0]
    assert residency.ask(3, 2) == Decision()
    assert residency.ask(4, 3) == Decision()
    tickets, decision = residency.failed(move)
    assert tickets == (2, 3)
    assert settle(residency, decision) == [4]
    assert residency.in_memory == {1, 3}
    assert residency.done(2) == Decision()


def test_prefetching_fills_memory_and_no_slot(residency: Residency) -> None:
    decision = residency.prefetch(1)
    assert decision == Decision((Move(1, load=True, place=False),))
    assert residency.prefetch(1) == Decision()
    # One place more than slots: one at a time.
    assert residency.prefetch(2) == Decision()
    settle(residency, decision)
    assert residency.ask(1, 1) == Decision((Move(1),))
    assert residency.counts.found_in_memory == 1


def test_prefetching_takes_no_place_that_is_in_use(residency: Residency) -> None:
    settle(residency, residency.ask(1, 1))
    settle(residency, residency.ask(2, 2))
    settle(residency, residency.done(2))
    settle(residency, residency.prefetch(3))
    # What is idle in its slot is worth more than a guess.
    assert residency.prefetch(4) == Decision((Move(4, drop=(3,), load=True, place=False),))
    assert residency.in_slots == {1, 2}


def test_asking_for_what_is_being_prefetched(residency: Residency) -> None:
    ahead = residency.prefetch(1).moves[0]
    asked = residency.ask(1, 1)
    # The engine loads it only if it is not there; it may have failed to come.
    assert asked == Decision((Move(1, load=True),))
    assert residency.failed(ahead) == ((), Decision())
    assert residency.moved(asked.moves[0]) == Decision(admitted=(1,))
    assert residency.counts.loads == 1
    residency.check()


def test_a_prefetch_that_fails(residency: Residency) -> None:
    assert residency.failed(residency.prefetch(1).moves[0]) == ((), Decision())
    assert residency.in_memory == frozenset()
    residency.check()


def test_retiring_gives_up_who_waits_and_nobody_else(residency: Residency) -> None:
    settle(residency, residency.ask(1, 1))
    settle(residency, residency.ask(2, 2))
    settle(residency, residency.ask(3, 3))
    assert residency.retire(3) == (3,)
    assert residency.retire(1) == ()
    assert residency.done(3) == Decision()
    assert residency.in_slots == {1, 2}
    residency.check()


def test_who_joins_a_turn_when_its_move_ends_is_let_in_once() -> None:
    residency = Residency(slots=1, places=1)
    first = residency.ask(1, 7)
    residency.ask(2, 8)
    # The turn is closed for this one, since somebody waits; then nobody does.
    assert residency.ask(3, 7) == Decision()
    assert residency.retire(8) == (2,)
    assert residency.moved(first.moves[0]) == Decision(admitted=(1, 3))


def test_forgetting(residency: Residency) -> None:
    settle(residency, residency.ask(1, 1))
    with pytest.raises(ValueError, match="adapter 1"):
        residency.forget(1)
    settle(residency, residency.done(1))
    settle(residency, residency.prefetch(2))
    assert residency.forget(1) == (True, True, Decision())
    assert residency.forget(2) == (False, True, Decision())
    assert residency.forget(3) == (False, False, Decision())
    assert residency.counts.free == 2
    assert residency.in_memory == frozenset()
    residency.check()


def test_the_check_finds_books_that_do_not_agree(residency: Residency) -> None:
    fill(residency, 1)
    residency._memory.clear()
    with pytest.raises(IntegrityError, match="in a slot is in memory"):
        residency.check()
