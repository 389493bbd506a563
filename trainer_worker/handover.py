"""Has what a training has done outlive its machine: what another worker needs to go on is put into the store
that machines share, in a thread of its own, and taken up there by whoever trains next.

That is the synthetic text and the checkpoint, which holds the LoRA, the optimiser, the step and what is drawn
next. Teacher targets stay where they are: they may be hundreds of times as large, and the teacher says the
same again. A store that is away costs nothing but a later try.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from km_registry.errors import NotFoundError, StaleAttemptError, StoreUnavailableError
from km_registry.files import atomic_write
from km_registry.registry import Registry
from km_registry.types import Job
from trainer_worker.attempt import Attempt
from trainer_worker.checkpoints import CHECKPOINT
from trainer_worker.config import TrainerSettings

_log = structlog.get_logger(__name__)

#: The file of synthetic text in a job's work directory.
JOURNAL = "synthesis.jsonl"
#: What is handed over, in the order in which it is of use.
_PARTS = (JOURNAL, CHECKPOINT)
#: The file that says whose work lies in a job's work directory.
_ATTEMPT = "attempt"


@dataclass(frozen=True, slots=True)
class _Due:
    """Work to be handed over, at a moment of the monotonic clock."""

    when: float
    attempt: Attempt
    directory: Path


class Handover:
    """Hands over what attempts have written into their work directories. A context manager: when it is left,
    what is newer than what was handed over goes as well, which may take `grace_s`.

    Each attempt's work goes at most every `every_s` seconds. Does nothing where machines share no store.
    Thread-safe.
    """

    def __init__(self, registry: Registry, *, every_s: float, grace_s: float) -> None:
        self._registry = registry
        self._every_s = every_s
        self._grace_s = grace_s
        self._changed = threading.Condition()
        self._due: dict[Attempt, _Due] = {}
        self._sent: dict[Attempt, float] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="handover", daemon=True)

    @classmethod
    def by(cls, settings: TrainerSettings, registry: Registry) -> Self:
        """As often as there are checkpoints; a worker that is stopped waits no longer than for its jobs."""
        return cls(registry, every_s=settings.checkpoint_seconds, grace_s=settings.shutdown_grace)

    def __enter__(self) -> Self:
        if self._registry.has_shared_store:
            self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        if not self._registry.has_shared_store:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(self._grace_s)

    def note(self, attempt: Attempt, directory: Path) -> None:
        """There is something new in this attempt's work directory; returns at once."""
        if not self._registry.has_shared_store:
            return
        with self._changed:
            if attempt not in self._due:
                when = self._sent.get(attempt, float("-inf")) + self._every_s
                self._due[attempt] = _Due(when, attempt, directory)
                self._changed.notify()

    def _run(self) -> None:
        while (due := self._next()) is not None:
            try:
                self._send(due)
            except (StaleAttemptError, NotFoundError):
                self._sent.pop(due.attempt, None)
            except (StoreUnavailableError, SQLAlchemyError, OSError) as error:
                _log.warning("work not handed over", job=due.attempt.job.id, error=type(error).__name__)
                if not self._closing:
                    self.note(due.attempt, due.directory)

    def _next(self) -> _Due | None:
        """What is due first, once it is; None when the last has gone."""
        with self._changed:
            while True:
                first = min(self._due.values(), key=lambda due: due.when, default=None)
                if first is None and self._closing:
                    return None
                if first is not None and (self._closing or first.when <= time.monotonic()):
                    self._sent[first.attempt] = time.monotonic()
                    return self._due.pop(first.attempt)
                self._changed.wait(None if first is None else first.when - time.monotonic())

    def _send(self, due: _Due) -> None:
        with due.attempt.sending():
            work = _packed(due.directory)
            if work is not None:
                self._registry.hand_over(due.attempt.job, work)


def take_over(registry: Registry, attempt: Attempt) -> None:
    """Have in the job's work directory the newest that any machine has done for it.

    Raises:
        StaleAttemptError: the job was taken away.
        StoreUnavailableError: nothing of it is on this machine, and what the store has nobody knows.
    """
    if not registry.has_shared_store:
        return
    job = attempt.job
    with attempt.writing():
        directory = registry.work_dir(job.id)
    work = _newer(registry, job, _attempt_here(directory, job)) if job.attempt > 1 else None
    with attempt.writing():
        if work is not None:
            _unpack(work, directory)
            _log.info("going on with what another attempt has handed over", job=job.id, bytes=len(work))
        # From now on this attempt's, whatever it was before.
        atomic_write(directory / _ATTEMPT, f"{job.id} {job.attempt}".encode())


def _newer(registry: Registry, job: Job, here: int) -> bytes | None:
    try:
        return registry.handed_over(job, after=here)
    except StoreUnavailableError:
        if not here:
            raise
        _log.warning("the store is away; going on with what is on this machine", job=job.id)
        return None


def _attempt_here(directory: Path, job: Job) -> int:
    """The attempt at the job whose work lies here; 0 when there is none."""
    try:
        job_id, number = (directory / _ATTEMPT).read_text().split()
    except FileNotFoundError:
        return 0
    return int(number) if job_id == job.id else 0


def _packed(directory: Path) -> bytes | None:
    """What is to be handed over, always the same bytes of the same files; None when there is nothing."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in _PARTS:
            try:
                file = (directory / name).open("rb")
            except FileNotFoundError:
                continue
            with file:
                # The journal may be growing: then its last line is torn, which its reader knows to bear.
                part = tarfile.TarInfo(name)
                part.size = os.fstat(file.fileno()).st_size
                archive.addfile(part, file)
        if not archive.getmembers():
            return None
    return buffer.getvalue()


def _unpack(work: bytes, directory: Path) -> None:
    for name in _PARTS:
        (directory / name).unlink(missing_ok=True)
    with tarfile.open(fileobj=io.BytesIO(work)) as archive:
        for part in archive:
            file = archive.extractfile(part) if part.name in _PARTS else None
            if file is not None:
                atomic_write(directory / part.name, file.read())
