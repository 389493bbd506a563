"""Which adapters are where: on disk only, in the host's memory, in a slot of the engine; and who is next.

Pure decisions: `Residency` is told what happens (a request comes or ends, an adapter has moved) and says what
is to be done about it. It moves nothing itself. One object for one engine, for one thread.

What holds at any time (`check`):

- An adapter with requests in flight is in a slot and stays there: it is pinned.
- pinned + idle + free slots are all slots. What is in a slot is in memory too.
- Nobody waits while a slot is idle or free.

Those who wait are served in the order in which their adapters came, better priorities first, all requests of
an adapter together. While W adapters wait, the W turns that began first are closed: their slots take no more
requests, so that they drain. Hence the bound on waiting: behind p others of its own or a better priority, an
adapter has its slot after at most ceil((p + 1) / slots) times as long as the longest request takes in one.

Of those that nobody uses the least popular leaves (`popularity`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from server.engine.popularity import Popularity
from server.engine.residency_types import Counts, Decision, IntegrityError, Move, Queue, Turn

__all__ = ["Counts", "Decision", "IntegrityError", "Move", "Residency"]


class Residency:
    """Slots and places in memory of one engine. The caller numbers adapters, and requests by tickets."""

    def __init__(self, *, slots: int, places: int) -> None:
        """`places` is how many adapters memory holds, those in slots included.

        Raises:
            ValueError: no slot, or fewer places than slots.
        """
        if not 1 <= slots <= places:
            raise ValueError(
                f"{slots} slots and {places} places in memory: at least one slot is needed, and a place for "
                "every slot. Raise KM_MAX_CPU_LORAS or lower KM_MAX_LORAS."
            )
        self._slots, self._places = slots, places
        self._clock = 0
        # Short, so that a document of today soon outdoes one of yesterday. Of what is in memory only.
        self._popularity = Popularity(half_life=8 * slots)
        #: True while an adapter is loaded ahead of its first request.
        self._memory: dict[int, bool] = {}
        self._turns: dict[int, Turn] = {}
        self._waiting: dict[int, Queue] = {}
        self._adapter_of: dict[int, int] = {}
        self._found = {"slot": 0, "memory": 0, "disk": 0}
        self._loads = self._swaps = self._left_slot = self._left_memory = 0

    # --- what happens ----------------------------------------------------------------------------------

    def ask(self, ticket: int, adapter: int, priority: int = 0) -> Decision:
        """A request comes. Lower priorities go first.

        Raises:
            ValueError: the ticket is in use.
        """
        if ticket in self._adapter_of:
            raise ValueError(f"ticket {ticket} is in use: give every request a number of its own")
        self._adapter_of[ticket] = adapter
        turn = self._turns.get(adapter)
        if turn is not None and adapter not in self._waiting and not self._closed(turn):
            if not turn.pinned:
                turn.began = self._tick()
            return Decision(admitted=self._join(adapter, turn, [ticket]))
        self._waiting.setdefault(adapter, Queue(self._tick())).tickets[ticket] = priority
        return self._granted()

    def done(self, ticket: int) -> Decision:
        """A request has ended, or was given up, wherever it was. A ticket that is not known is no error."""
        adapter = self._adapter_of.pop(ticket, None)
        if adapter is None:
            return Decision()
        queue, turn = self._waiting.get(adapter), self._turns.get(adapter)
        if queue is not None and queue.tickets.pop(ticket, None) is not None:
            if not queue.tickets:
                del self._waiting[adapter]
        elif turn is not None:
            turn.tickets.discard(ticket)
        return self._granted()

    def moved(self, move: Move) -> Decision:
        """The move has been made. Whoever waited for it may run."""
        if not move.place:
            self._memory[move.adapter] = False
            return self._granted()
        turn = self._turns[move.adapter]
        turn.moving = False
        # Before anybody joins: those who do are among the admitted of their own.
        came_with_it = tuple(sorted(turn.tickets))
        rest = self._granted()
        return Decision(rest.moves, came_with_it + rest.admitted)

    def failed(self, move: Move) -> tuple[tuple[int, ...], Decision]:
        """The move could not be made: its adapter is on disk only. The requests that have come for it are
        given up; returns them, and what follows for the others."""
        adapter = move.adapter
        if not move.place and adapter in self._turns:
            # It was asked meanwhile: the move into its slot loads it, or fails too.
            self._memory[adapter] = False
            return (), self._granted()
        turn, queue = self._turns.get(adapter), self._waiting.pop(adapter, None)
        tickets = tuple(sorted({*(turn.tickets if turn else ()), *(queue.tickets if queue else ())}))
        for ticket in tickets:
            del self._adapter_of[ticket]
        self._leave_slot(adapter)
        self._leave_memory(adapter)
        return tickets, self._granted()

    def prefetch(self, adapter: int) -> Decision:
        """Somebody may soon ask the adapter: have it loaded to memory, unless others need all the places."""
        if adapter in self._memory:
            self._popularity.used(adapter)
            return Decision()
        full = len(self._memory) >= self._places
        spare = [one for one in self._memory if one not in self._turns and not self.busy(one)]
        # A request must always find a place, so those that are loaded ahead may not take them all.
        if sum(self._memory.values()) >= self._places - self._slots or (full and not spare):
            return Decision()
        drop = self._take_place(adapter, self._least(spare) if full else None)
        self._memory[adapter] = True
        self._popularity.used(adapter)
        return Decision((Move(adapter, drop=drop, load=True, place=False),))

    def retire(self, adapter: int) -> tuple[int, ...]:
        """Give up the requests that still wait for the adapter; those in flight go on. Returns them."""
        queue = self._waiting.pop(adapter, None)
        tickets = tuple(queue.tickets) if queue else ()
        for ticket in tickets:
            del self._adapter_of[ticket]
        return tickets

    def forget(self, adapter: int) -> tuple[bool, bool, Decision]:
        """The adapter leaves its slot and memory. Whether it was in a slot and in memory, and what follows.

        Raises:
            ValueError: it is being asked or moved.
        """
        if self.busy(adapter):
            raise ValueError(f"adapter {adapter} is in use: wait for its requests and moves first")
        in_slot, in_memory = adapter in self._turns, adapter in self._memory
        self._leave_slot(adapter)
        self._leave_memory(adapter)
        return in_slot, in_memory, self._granted()

    # --- what there is ---------------------------------------------------------------------------------

    def busy(self, adapter: int) -> bool:
        """Whether it is asked, waited for or moved."""
        return adapter in self._waiting or self._held(adapter)

    def _held(self, adapter: int) -> bool:
        turn = self._turns.get(adapter)
        return bool(turn and turn.pinned) or bool(self._memory.get(adapter))

    @property
    def in_slots(self) -> frozenset[int]:
        """Adapters in a slot, or on their way there."""
        return frozenset(self._turns)

    @property
    def in_memory(self) -> frozenset[int]:
        """Adapters in memory, or on their way there."""
        return frozenset(self._memory)

    @property
    def counts(self) -> Counts:
        """How things stand."""
        pinned = sum(turn.pinned for turn in self._turns.values())
        return Counts(
            slots=self._slots,
            pinned=pinned,
            idle=len(self._turns) - pinned,
            free=self._slots - len(self._turns),
            in_memory=len(self._memory),
            waiting=sum(len(queue.tickets) for queue in self._waiting.values()),
            found_in_slot=self._found["slot"],
            found_in_memory=self._found["memory"],
            found_on_disk=self._found["disk"],
            loads=self._loads,
            swaps=self._swaps,
            left_slot=self._left_slot,
            left_memory=self._left_memory,
        )

    def check(self) -> None:
        """Raise IntegrityError unless everything that must hold does."""
        for rule, holds in self._rules():
            if not holds:
                raise IntegrityError(f"adapter residency: {rule} does not hold; {self.counts}")

    def _rules(self) -> Iterator[tuple[str, bool]]:
        counts = self.counts
        in_flight = [ticket for turn in self._turns.values() for ticket in turn.tickets]
        queued = [ticket for queue in self._waiting.values() for ticket in queue.tickets]
        yield "pinned + idle + free == slots", counts.pinned + counts.idle + counts.free == self._slots
        yield "no negative number of slots", min(counts.pinned, counts.idle, counts.free) >= 0
        yield "no more in memory than there are places", counts.in_memory <= self._places
        yield "what is in a slot is in memory", self.in_slots <= self.in_memory
        there = sorted(in_flight + queued)
        yield "every request is in flight or waits, once", there == sorted(self._adapter_of)
        yield "nobody waits beside an unused slot", not queued or counts.pinned == self._slots
        yield "no empty queue", all(queue.tickets for queue in self._waiting.values())
        yield "what left a slot came to one", self._swaps - self._left_slot == len(self._turns)
        yield "what left memory came there", self._loads - self._left_memory == len(self._memory)

    # --- deciding --------------------------------------------------------------------------------------

    def _granted(self) -> Decision:
        """Give slots to those who wait, as far as there are any that nobody is using."""
        moves: list[Move] = []
        admitted: list[int] = []
        while self._waiting:
            adapter = min(self._waiting, key=lambda one: self._waiting[one].rank)
            move = None
            if adapter not in self._turns:
                if len(self._turns) == self._slots and self._idle() is None:
                    break
                move = self._move(adapter)
                moves.append(move)
            turn = self._turns[adapter]
            # Also one that was closed: it is its adapter's turn again.
            turn.began = self._tick()
            tickets = list(self._waiting.pop(adapter).tickets)
            admitted += self._join(adapter, turn, tickets, move)
        return Decision(tuple(moves), tuple(admitted))

    def _move(self, adapter: int) -> Move:
        """Bring the adapter into a slot. There is one that is free or idle."""
        drop: tuple[int, ...] = ()
        vacate: tuple[int, ...] = ()
        # True while it is being loaded ahead, which may fail.
        load = self._memory.get(adapter, True)
        if adapter not in self._memory:
            drop = self._take_place(adapter, self._outgoing())
        # Whatever left memory has left its slot.
        if len(self._turns) == self._slots and (victim := self._idle()) is not None:
            self._leave_slot(victim)
            vacate = (victim,)
        self._turns[adapter] = Turn(self._clock, moving=True)
        self._swaps += 1
        return Move(adapter, drop=drop, vacate=vacate, load=load)

    def _outgoing(self) -> int | None:
        """Who leaves memory for a request's adapter; None if there is room."""
        if len(self._memory) < self._places:
            return None
        return self._least(one for one in self._memory if not self._held(one))

    def _take_place(self, adapter: int, victim: int | None) -> tuple[int, ...]:
        self._memory[adapter] = False
        self._loads += 1
        if victim is None:
            return ()
        self._leave_slot(victim)
        self._leave_memory(victim)
        return (victim,)

    def _idle(self) -> int | None:
        """The idle adapter that leaves its slot first; None if all are pinned."""
        return self._least(adapter for adapter, turn in self._turns.items() if not turn.pinned)

    def _least(self, adapters: Iterable[int]) -> int | None:
        """The least popular; rather one that nobody waits for; None of none."""
        return min(adapters, key=lambda one: (one in self._waiting, self._popularity(one)), default=None)

    def _join(
        self, adapter: int, turn: Turn, tickets: list[int], move: Move | None = None
    ) -> tuple[int, ...]:
        """Let the requests run in the adapter's turn; those that may at once."""
        turn.tickets.update(tickets)
        self._popularity.used(adapter, len(tickets))
        if move is not None:
            self._found["disk" if move.load else "memory"] += 1
        self._found["slot"] += len(tickets) - (move is not None)
        return () if turn.moving else tuple(tickets)

    def _closed(self, turn: Turn) -> bool:
        """Whether its slot takes no more requests: as many turns, the oldest, as adapters wait."""
        older = sum(other.began < turn.began for other in self._turns.values())
        return older < len(self._waiting)

    def _leave_slot(self, adapter: int) -> None:
        if self._turns.pop(adapter, None) is not None:
            self._left_slot += 1

    def _leave_memory(self, adapter: int) -> None:
        if self._memory.pop(adapter, None) is not None:
            self._left_memory += 1
            self._popularity.forget(adapter)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock
