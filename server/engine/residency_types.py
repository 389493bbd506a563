"""What adapter residency is about: moves, decisions, counts, and the parts of its books."""

from __future__ import annotations

from dataclasses import dataclass, field


class IntegrityError(RuntimeError):
    """The books of which adapter is where do not agree with themselves, or with the engine."""


@dataclass(frozen=True, slots=True)
class Move:
    """What the engine must do, in this order, before `adapter` may be asked.

    `drop` leave memory (and their slots, where they are idle in one), `vacate` leave their slots only; then
    `adapter` is loaded from disk to memory if `load` (unless it is there), and put into a slot if `place`.
    Room that was made stays made when the rest fails.
    """

    adapter: int
    drop: tuple[int, ...] = ()
    vacate: tuple[int, ...] = ()
    load: bool = False
    place: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from something that happened: moves to be made in order, and requests that may run now."""

    moves: tuple[Move, ...] = ()
    admitted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """Slots by state, what else there is now, and everything that happened so far.

    Requests were `found_in_slot`, `found_in_memory` or `found_on_disk`; one that joins another's move into a
    slot counts as found there. What failed to come, and was counted as coming, counts as having left.
    """

    slots: int
    pinned: int
    idle: int
    free: int
    in_memory: int
    waiting: int
    found_in_slot: int
    found_in_memory: int
    found_on_disk: int
    loads: int
    swaps: int
    left_slot: int
    left_memory: int


@dataclass(slots=True)
class Turn:
    """An adapter's time in a slot: since when, who is in flight, and whether it is still on its way there."""

    began: int
    tickets: set[int] = field(default_factory=set)
    moving: bool = False

    @property
    def pinned(self) -> bool:
        """Whether the slot may not be given to another adapter."""
        return self.moving or bool(self.tickets)


@dataclass(slots=True)
class Queue:
    """The requests that wait for one adapter: tickets with their priorities, in order of arrival."""

    since: int
    tickets: dict[int, int] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, int]:
        """Lower is served first."""
        return min(self.tickets.values()), self.since
