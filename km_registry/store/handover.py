"""Unfinished trainings on their way between machines that share a store.

What another machine needs to go on is one object below the document's own key, named by the attempt that
wrote it, a number and its SHA-256. None is ever overwritten: what an attempt that lost its job still writes
is older than what its successor has, and goes with the job.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import structlog
from sqlalchemy import select

from km_registry.artifact_store.base import Forgotten
from km_registry.artifact_store.objects import Objects
from km_registry.artifact_store.shared import SharedStore
from km_registry.errors import StaleAttemptError, StoreUnavailableError
from km_registry.store.layout import handover_key
from km_registry.store.store import Store
from km_registry.tables import DocumentRow, JobRow
from km_registry.types import Job, JobState

_log = structlog.get_logger(__name__)

#: Times the newest is looked for that was gone when it was to be read.
_LOOKS = 3
_NAME = re.compile(r"(\d+)\.(\d+)\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, order=True)
class _Name:
    """What the last part of a key says; the later sorts after the earlier."""

    attempt: int
    number: int
    sha256: str

    @classmethod
    def read(cls, key: str) -> Self | None:
        """None for a key of something else."""
        found = _NAME.fullmatch(key.rpartition("/")[2])
        return cls(int(found[1]), int(found[2]), found[3]) if found else None

    def __str__(self) -> str:
        return f"{self.attempt}.{self.number}.{self.sha256}"


def hand_over(store: Store, job: Job, data: bytes) -> None:
    """Have the job's next attempt find `data`, wherever it runs, and no more what was there before.

    StaleAttemptError when the attempt no longer owns the job; once the job has ended nothing is left. Does
    nothing where machines share no store.
    """
    objects = _objects(store)
    if objects is None:
        return
    if _state(store, job) is not JobState.RUNNING:
        raise StaleAttemptError
    key, sha256 = handover_key(job.document_id, job.id), hashlib.sha256(data).hexdigest()
    before = _names(objects, key)
    if before and before[-1].sha256 == sha256:
        return
    number = max((one.number for one in before if one.attempt == job.attempt), default=0) + 1
    mine = _Name(job.attempt, number, sha256)
    objects.put(f"{key}/{mine}", data)
    # Whoever ended the job meanwhile either finds what was put, or had ended it before this look.
    if _state(store, job, of_any_attempt=True) is None:
        withdraw(store, job.document_id, job.id)
        raise StaleAttemptError
    objects.delete([f"{key}/{one}" for one in before if one < mine])


def handed_over(store: Store, job: Job, after: int) -> bytes | None:
    """The newest that an attempt later than `after` has handed over, and that is as it was written."""
    objects = _objects(store)
    if objects is None:
        return None
    for _ in range(_LOOKS):
        # An attempt that lost the job may put a later one in its place in this very moment.
        with suppress(FileNotFoundError):
            return _newest(objects, job, after)
    return None


def _newest(objects: Objects, job: Job, after: int) -> bytes | None:
    key = handover_key(job.document_id, job.id)
    for name in reversed(_names(objects, key)):
        if name.attempt <= after:
            return None
        data = objects.get(f"{key}/{name}")
        if hashlib.sha256(data).hexdigest() == name.sha256:
            return data
        _log.warning("what was handed over is damaged and is ignored", job=job.id, attempt=name.attempt)
    return None


def withdraw(store: Store, document_id: str, job_id: str) -> Forgotten:
    """Remove all that the job's attempts have handed over. StoreUnavailableError."""
    return store.artifacts.forget(handover_key(document_id, job_id))


def ended(store: Store, document_id: str, job_id: str) -> None:
    """The job has ended: as `withdraw`, but what stays while the store is away is swept later."""
    with suppress(StoreUnavailableError):
        withdraw(store, document_id, job_id)


def _objects(store: Store) -> Objects | None:
    return store.artifacts.objects if isinstance(store.artifacts, SharedStore) else None


def _names(objects: Objects, key: str) -> list[_Name]:
    """The oldest first."""
    return sorted(name for one in objects.below(key) if (name := _Name.read(one)) is not None)


def _state(store: Store, job: Job, *, of_any_attempt: bool = False) -> JobState | None:
    """The state of the job while it is unfinished and this attempt is its last."""
    query = (
        select(JobRow.state, JobRow.attempt)
        .join(DocumentRow, DocumentRow.id == JobRow.document_id)
        .where(JobRow.id == job.id, DocumentRow.deleted_at.is_(None))
    )
    with store.database.reading() as session:
        row = session.execute(query).one_or_none()
    if row is None or JobState(row.state).finished:
        return None
    return JobState(row.state) if of_any_attempt or row.attempt == job.attempt else None
