"""The attempts that this process holds: claimed, kept alive by one heartbeat, each ended on its own.

One document's trouble is never another's: each attempt is fenced by its own number, and one whose job was
taken away (cancelled, deleted, taken over) is told so within a heartbeat, wherever it is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Self

import structlog
from sqlalchemy.exc import OperationalError

from km_registry.errors import KMError, NotFoundError, StaleAttemptError, StoreUnavailableError
from km_registry.registry import Registry
from km_registry.tracing import NO_SPAN, Span
from km_registry.types import Job
from trainer_worker.attempt import Attempt

_log = structlog.get_logger(__name__)

HEARTBEAT_S = 0.5
#: Workers that begin at once want the same job, and one gets it.
_LOOK_AT = 16
#: What is full or away may not be so later.
_PASSING = (OSError, OperationalError, StoreUnavailableError)


class Attempts:
    """What one run (a worker's child process) holds. A context manager: within it the heart beats.

    `begun` makes the span of an attempt that was claimed. With `queues` only their jobs are taken.
    """

    def __init__(
        self,
        registry: Registry,
        run_id: str,
        begun: Callable[[Job], Span] = lambda _job: NO_SPAN,
        *,
        queues: Collection[str] | None = None,
    ) -> None:
        self._registry = registry
        self._run_id = run_id
        self._begun = begun
        self._queues = queues
        self._lock = threading.Lock()
        self._held: dict[str, Attempt] = {}
        #: Taken away and ended, but something of them is still being sent.
        self._leaving: set[Attempt] = set()
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._done.set()
        self._heart.join()

    def __len__(self) -> int:
        return len(self._held)

    def held(self) -> list[Attempt]:
        """What has not ended yet, oldest first."""
        with self._lock:
            return list(self._held.values())

    def claim(self, job_id: str) -> Attempt | None:
        """Begin the job's next attempt; None when it waits no more."""
        job = self._registry.claim(job_id, run_id=self._run_id)
        if job is None:
            return None
        attempt = Attempt(job, self._begun(job))
        with self._lock:
            self._held[job_id] = attempt
        return attempt

    def claim_next(self, job_id: str) -> Attempt | None:
        """Begin the next attempt of the job whose turn it is; None when none waits.

        An entry of the queue says that a job waits; whose turn it is the registry knows. Each waiting job has
        an entry, so that none is forgotten.
        """
        for job in self._registry.queued_jobs(_LOOK_AT, self._queues):
            if (attempt := self.claim(job.id)) is not None:
                return attempt
        return self.claim(job_id)

    def claim_more(self, limit: int, fits: Callable[[Job], bool], *, leave: int = 0) -> list[Attempt]:
        """Claim waiting jobs, in the order of their turns, until this run holds `limit` or one does not fit.

        The first `leave` of them are left to workers that have nothing to do. A job that crashed before is
        trained alone: should it do so again it takes nobody with it.
        """
        claimed: list[Attempt] = []
        if any(attempt.job.crashes for attempt in self.held()):
            return claimed
        for job in self._registry.queued_jobs(limit + leave, self._queues)[leave:]:
            if len(self) >= limit or not fits(job):
                break
            if not job.crashes and (attempt := self.claim(job.id)) is not None:
                claimed.append(attempt)
        return claimed

    @contextmanager
    def ending(self, attempt: Attempt, *, keep: Collection[str] = ()) -> Iterator[None]:
        """Whatever goes wrong within it ends this attempt only, with the reason in the job's row.

        Of the work directory of an attempt that failed, `keep` stays for a retry.
        """
        try:
            yield
        except (StaleAttemptError, NotFoundError):
            self._taken_away(attempt)
        except Exception as error:  # noqa: BLE001  whatever failed must be said in the job row
            attempt.trace.fail(error)
            if attempt.is_lost:
                # Its files may have been purged while it worked on them.
                self._taken_away(attempt)
            else:
                self._log_failure(attempt, error)
                self._end(attempt, error, keep)

    def finished(self, attempt: Attempt) -> None:
        """The attempt has published its KM."""
        self._forget(attempt, "published")

    def fail(self, attempt: Attempt, reason: str, *, keep: Collection[str] = ()) -> None:
        """End the job with a reason."""
        try:
            self._registry.fail(attempt.job.id, attempt.job.attempt, reason, keep=keep)
        except (StaleAttemptError, NotFoundError):
            self._taken_away(attempt)
        else:
            self._forget(attempt, "failed")

    def release(self) -> None:
        """Hand every job back, for a later attempt that goes on from here."""
        for attempt in self.held():
            job = attempt.job
            try:
                self._registry.release(job.id, job.attempt)
            except (StaleAttemptError, NotFoundError):
                self._taken_away(attempt)
            else:
                _log.info("job handed back", job=job.id)
                self._forget(attempt, "handed back")

    def crash(self, reason: str) -> None:
        """Nobody knows which of the jobs it was: each is queued again, and will be trained alone."""
        self._registry.end_run(self._run_id, crash=reason)
        for attempt in self.held():
            self._forget(attempt, "crashed")

    def _end(self, attempt: Attempt, error: Exception, keep: Collection[str]) -> None:
        if not isinstance(error, _PASSING):
            self.fail(attempt, reason_of(error), keep=keep)
            return
        # Where the store is away nothing on this machine is in the way, and it all cost much to make.
        kept = None if isinstance(error, StoreUnavailableError) else keep
        try:
            self._registry.put_off(attempt.job.id, attempt.job.attempt, reason_of(error), keep=kept)
        except (StaleAttemptError, NotFoundError):
            self._taken_away(attempt)
        else:
            self._forget(attempt, "put off")

    def _log_failure(self, attempt: Attempt, error: Exception) -> None:
        if isinstance(error, KMError):
            _log.warning("job failed", job=attempt.job.id, reason=str(error))
        else:
            _log.exception("job failed", job=attempt.job.id)

    def _taken_away(self, attempt: Attempt) -> None:
        _log.info("job was taken away", job=attempt.job.id, attempt=attempt.job.attempt)
        self._forget(attempt, "taken away")
        self._let_go(attempt)

    def _forget(self, attempt: Attempt, outcome: str) -> None:
        attempt.trace.end(outcome)
        with self._lock:
            # This run may have claimed the job's next attempt by now.
            if self._held.get(attempt.job.id) is attempt:
                del self._held[attempt.job.id]

    def _let_go(self, attempt: Attempt) -> None:
        if not attempt.lose():
            self._leaving.add(attempt)
            return
        self._leaving.discard(attempt)
        self._registry.let_go(self._run_id, attempt.job.id, attempt.job.attempt)

    # --- the heart -----------------------------------------------------------------------------------------

    def _beat(self) -> None:
        doomed = False
        while not self._done.wait(HEARTBEAT_S):
            held = self.held()
            try:
                self._beat_once(held)
            except OperationalError as error:
                # The database is busy or away for a moment; the rows stay ours for many beats.
                _log.warning("heartbeat missed", run=self._run_id, error=str(error.orig))
                continue
            if not held or not all(attempt.is_lost for attempt in held):
                doomed = False
            elif doomed:
                # Nothing we could still write is wanted, and a product of matrices cannot be interrupted.
                _log.info("every job was taken away; leaving", run=self._run_id)
                os._exit(0)
            else:
                # It may be we who ended it a moment ago, in which case we end by ourselves.
                doomed = True

    def _beat_once(self, held: list[Attempt]) -> None:
        owned = self._registry.beat(self._run_id)
        for attempt in held:
            if (attempt.job.id, attempt.job.attempt) not in owned and attempt.lose():
                self._let_go(attempt)
        for attempt in list(self._leaving):
            self._let_go(attempt)


def reason_of(error: Exception) -> str:
    """What the user is told."""
    if isinstance(error, KMError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory to train this document; lower batch_tokens in the recipe"
    return f"{type(error).__name__}: {error}"
