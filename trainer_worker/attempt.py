"""One claimed job, as the process that trains it sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from km_registry.errors import StaleAttemptError
from km_registry.tracing import NO_SPAN, Span
from km_registry.types import Job
from trainer_worker.traces import AttemptTrace


class Attempt:
    """One claimed job: fenced by its number, and told when it is taken away. Thread-safe."""

    def __init__(self, job: Job, span: Span = NO_SPAN) -> None:
        self.job = job
        self.trace = AttemptTrace(span)
        self._lost = threading.Event()
        self._files = threading.Lock()
        self._sent = threading.Lock()
        self._when_lost: list[Callable[[], None]] = []

    def check(self) -> None:
        """Go on only while the job is ours.

        Raises:
            StaleAttemptError: it was taken away.
        """
        if self._lost.is_set():
            raise StaleAttemptError(
                f"attempt {self.job.attempt} no longer owns job {self.job.id}; stop working on it"
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Where files of the job may be made. Keep it short: whoever deletes the document waits for its end.

        Raises:
            StaleAttemptError: the job was taken away; its files may be purged by now.
        """
        with self._files:
            self.check()
            yield

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Where work of the job may be put where other machines find it, by one thread at a time. It may take
        long, and holds up none of the job's other threads.

        Raises:
            StaleAttemptError: the job was taken away; what was put there may be purged by now.
        """
        with self._sent:
            self.check()
            yield

    @contextmanager
    def when_lost(self, act: Callable[[], None]) -> Iterator[None]:
        """Within it `act` is called, by another thread, as soon as the job is taken away."""
        self._when_lost.append(act)
        try:
            self.check()
            yield
        finally:
            self._when_lost.remove(act)

    @property
    def is_lost(self) -> bool:
        """Whether the job was taken away."""
        return self._lost.is_set()

    def hang_up(self) -> None:
        """End what the job's threads wait for: nobody waits for them any more."""
        for act in list(self._when_lost):
            act()

    def lose(self) -> bool:
        """The job was taken away. Whether nothing of it is being written or sent, so that it can be let go
        of."""
        if not self._lost.is_set():
            self._lost.set()
            self.hang_up()
        # The locks are only tried: other jobs' hearts must go on beating.
        for lock in (self._files, self._sent):
            if not lock.acquire(blocking=False):
                return False
            lock.release()
        return True
