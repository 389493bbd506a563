"""Which adapter is where: whatever happens in whatever order, the books agree with an engine that obeys them,
and nobody waits longer than is promised."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.engine.residency import Decision, Move, Residency

ADAPTERS = st.integers(0, 7)


class ObedientEngine:
    """Memory and slots, which do as they are told and find what no engine could do."""

    def __init__(self, slots: int, places: int) -> None:
        self.slots, self.places = slots, places
        self.in_memory: set[int] = set()
        self.in_slots: set[int] = set()

    def make_room(self, move: Move, running: set[int]) -> None:
        """Whoever leaves is there, and not being asked."""
        assert not running.intersection(move.drop + move.vacate)
        assert self.in_memory.issuperset(move.drop)
        assert self.in_slots.issuperset(move.vacate)
        self.in_memory.difference_update(move.drop)
        self.in_slots.difference_update(move.drop + move.vacate)

    def bring(self, move: Move) -> None:
        """Whoever comes finds room."""
        assert move.load or move.adapter in self.in_memory
        self.in_memory.add(move.adapter)
        assert len(self.in_memory) <= self.places
        if move.place:
            assert move.adapter not in self.in_slots
            self.in_slots.add(move.adapter)
            assert len(self.in_slots) <= self.slots


class Anything(RuleBasedStateMachine):
    """Requests, moves that are made late or fail, prefetches, retirements and evictions."""

    @initialize(slots=st.integers(1, 3), more=st.integers(0, 2))
    def begin(self, slots: int, more: int) -> None:
        self.residency = Residency(slots=slots, places=slots + more)
        self.engine = ObedientEngine(slots, slots + more)
        self.numbers = itertools.count()
        self.adapter_of: dict[int, int] = {}
        self.running: set[int] = set()
        self.moves: deque[Move] = deque()

    def follow(self, decision: Decision) -> None:
        self.moves.extend(decision.moves)
        for ticket in decision.admitted:
            assert ticket in self.adapter_of
            assert ticket not in self.running
            assert self.adapter_of[ticket] in self.engine.in_slots
            self.running.add(ticket)

    def given_up(self, tickets: tuple[int, ...]) -> None:
        for ticket in tickets:
            assert ticket not in self.running
            del self.adapter_of[ticket]

    @rule(adapter=ADAPTERS, priority=st.sampled_from((0, 10)))
    def ask(self, adapter: int, priority: int) -> None:
        ticket = next(self.numbers)
        self.adapter_of[ticket] = adapter
        self.follow(self.residency.ask(ticket, adapter, priority))

    @rule(which=st.integers(0))
    def end(self, which: int) -> None:
        """One that runs is answered, or one that waits is cancelled."""
        if self.adapter_of:
            ticket = sorted(self.adapter_of)[which % len(self.adapter_of)]
            self.running.discard(ticket)
            del self.adapter_of[ticket]
            self.follow(self.residency.done(ticket))

    @rule(fails=st.sampled_from((False, False, False, True)))
    def move(self, fails: bool) -> None:
        if self.moves:
            move = self.moves.popleft()
            self.engine.make_room(move, {self.adapter_of[ticket] for ticket in self.running})
            if not fails:
                self.engine.bring(move)
                self.follow(self.residency.moved(move))
                return
            if move.place:
                self.engine.in_memory.discard(move.adapter)
            tickets, decision = self.residency.failed(move)
            self.given_up(tickets)
            self.follow(decision)

    @rule(adapter=ADAPTERS)
    def prefetch(self, adapter: int) -> None:
        self.follow(self.residency.prefetch(adapter))

    @rule(adapter=ADAPTERS)
    def retire(self, adapter: int) -> None:
        self.given_up(self.residency.retire(adapter))

    @rule(adapter=ADAPTERS)
    def forget(self, adapter: int) -> None:
        # As the engine does: after the adapter's requests, and in the order of the moves.
        if self.residency.busy(adapter) or self.moves:
            return
        in_slot, in_memory, decision = self.residency.forget(adapter)
        assert (in_slot, in_memory) == (adapter in self.engine.in_slots, adapter in self.engine.in_memory)
        self.engine.in_slots.discard(adapter)
        self.engine.in_memory.discard(adapter)
        self.follow(decision)

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "residency"):
            return
        self.residency.check()
        if not self.moves:
            assert self.residency.in_slots == self.engine.in_slots
            assert self.residency.in_memory == self.engine.in_memory
            waiting = len(self.adapter_of) - len(self.running)
            assert self.residency.counts.waiting == waiting

    def teardown(self) -> None:
        """Once everything is answered nothing is left that runs or waits."""
        while hasattr(self, "residency") and (self.moves or self.adapter_of):
            while self.moves:
                self.move(fails=False)
            for ticket in sorted(self.running):
                self.running.discard(ticket)
                del self.adapter_of[ticket]
                self.follow(self.residency.done(ticket))
            assert self.moves or self.running or not self.adapter_of
        if hasattr(self, "residency"):
            assert (self.residency.counts.pinned, self.residency.counts.waiting) == (0, 0)


Anything.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAnything = Anything.TestCase

LONGEST = 10


@given(
    slots=st.integers(1, 4),
    asks=st.lists(st.tuples(st.integers(0, 3), ADAPTERS, st.integers(1, LONGEST)), min_size=1, max_size=60),
)
@settings(max_examples=100, deadline=None)
def test_nobody_waits_longer_than_promised(slots: int, asks: list[tuple[int, int, int]]) -> None:
    """(time since the one before, adapter, how long it takes) for every request; moves take no time."""
    residency = Residency(slots=slots, places=slots + 2)
    now = 0
    ends: list[tuple[int, int]] = []
    lasts: dict[int, int] = {}
    #: When each request had to run, at the latest.
    due: dict[int, int] = {}
    waiting: dict[int, list[int]] = {}

    def follow(decision: Decision) -> None:
        for move in decision.moves:
            follow(residency.moved(move))
        for ticket in decision.admitted:
            assert now <= due[ticket]
            heapq.heappush(ends, (now + lasts[ticket], ticket))
            waiting.pop(asks[ticket][1], None)

    def end_until(time: int) -> None:
        nonlocal now
        while ends and ends[0][0] <= time:
            now, ticket = heapq.heappop(ends)
            follow(residency.done(ticket))
        now = time

    for ticket, (pause, adapter, length) in enumerate(asks):
        end_until(now + pause)
        lasts[ticket] = length
        ahead = list(waiting).index(adapter) if adapter in waiting else len(waiting)
        due[ticket] = now + ceil((ahead + 1) / slots) * LONGEST
        waiting.setdefault(adapter, []).append(ticket)
        follow(residency.ask(ticket, adapter))
    end_until(now + LONGEST * len(asks))
    assert residency.counts.waiting == 0
