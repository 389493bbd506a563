"""The fence of a gateway: it answers from documents only while the others count on it.

A deletion is complete once every live gateway has let go of the document, so whoever is not counted as live
must not answer from one. Four times decide, `LIVE` (15 s) by the database's clock, the others by this
machine's, which counts on while the machine is suspended:

- Every 2 s (`BEAT_S`) a gateway writes the database's present moment into its row. The row is therefore never
  older than what has passed here since that heartbeat was *begun*.
- 10 s (`FENCE_S`) after the beginning of the last heartbeat that succeeded the fence is closed: no request
  that rests on a document is let in, and no piece of an answer that runs is let out. It needs no event for
  that: the clock is read before each piece.
- 15 s after that heartbeat at the earliest others complete deletions without this gateway. The 5 s between
  are for a piece that has just passed, and for clocks that do not run alike.
- A fence that was closed, or a row that the database found silent for longer than 15 s (its clock may have
  been set, this machine may have been frozen with its clocks), is opened only once the gateway is counted
  again and has then let go of all that was deleted meanwhile (`lapses`, `trust`).

What is left: a machine whose clocks stand still while it does (a virtual machine that is paused) finds out
at its next heartbeat, within 2 s of going on. Of a document that was deleted meanwhile it begins no answer,
since each is authorised by the database first; pieces of one that was being written may get out in these 2 s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from server.engine.base import EngineUnavailableError

BEAT_S = 2.0
FENCE_S = 10.0


class FencedError(EngineUnavailableError):
    """This gateway lost touch with the database and answers from no document until it has caught up with what
    was deleted meanwhile. Try again in a moment."""

    def __init__(self) -> None:
        super().__init__(" ".join((type(self).__doc__ or "").split()))


def _boot_clock() -> float:
    # Unlike the monotonic clock it counts on while the machine is suspended.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Fence:
    """Open for ever until the first heartbeat: a gateway without others has none."""

    def __init__(self, clock: Callable[[], float] = _boot_clock) -> None:
        self.clock = clock
        self._until = math.inf
        #: How often the gateway was out of touch.
        self.lapses = 0
        self._trusted = 0

    @property
    def is_open(self) -> bool:
        """Whether answers may rest on documents."""
        return not self.must_reconcile and self.clock() < self._until

    @property
    def must_reconcile(self) -> bool:
        """Whether it was out of touch, and what was deleted meanwhile may be here still."""
        return self._trusted != self.lapses

    def beaten(self, begun: float, *, counted: bool) -> None:
        """A heartbeat that was begun at that time has succeeded. `counted`: the others went on counting on
        the gateway until then."""
        if not counted or self.clock() >= self._until:
            self.lapses += 1
        self._until = begun + FENCE_S

    def joined(self, begun: float) -> None:
        """The gateway joins the others, and holds nothing yet."""
        self._until = begun + FENCE_S

    def close(self) -> None:
        """The gateway is not counted any more, and stays so."""
        self._until = -math.inf

    def trust(self, lapses: int) -> None:
        """Nothing is here of what was deleted before the lapse of that number ended."""
        self._trusted = lapses

    def check(self) -> None:
        """FencedError unless it is open."""
        if not self.is_open:
            raise FencedError
