"""Jobs. Changes of state are conditional updates, so that an attempt that lost its job can change nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.exc import IntegrityError

from km_registry.artifacts import purge_dir
from km_registry.errors import ConflictError, StaleAttemptError, StoreUnavailableError
from km_registry.ids import new_id
from km_registry.store import audit, handover, quota
from km_registry.store.access import require
from km_registry.store.rows import as_event, as_job, find_job, latest_job
from km_registry.store.store import Store, Transaction, now
from km_registry.tables import DocumentRow, EventRow, JobRow
from km_registry.types import Action, Event, Job, JobState, Principal, Stage

_MAX_ERROR_CHARS = 2000
#: The longest that a retry is put off, however often.
LONGEST_WAIT = timedelta(hours=1)


def queue_job(transaction: Transaction, document: DocumentRow, recipe: dict[str, Any]) -> Job:
    """A new queued job for the document's present version, within the caller's transaction."""
    row = JobRow(
        id=new_id("job"),
        document_id=document.id,
        version=document.version,
        state=JobState.QUEUED,
        attempt=0,
        stage=Stage.WAITING,
        step=0,
        total_steps=0,
        recipe=recipe,
        created_at=now(),
    )
    transaction.session.add(row)
    transaction.session.flush()
    transaction.emit(document.id, row.id, "queued", {"attempt": 0, "version": row.version})
    return as_job(row)


def cancel_unfinished(transaction: Transaction, document_id: str) -> bool:
    """Cancel the document's queued or running job within the caller's transaction; whether it had one."""
    unfinished = select(JobRow).where(
        JobRow.document_id == document_id, JobRow.state.in_([JobState.QUEUED, JobState.RUNNING])
    )
    jobs = transaction.session.scalars(unfinished.with_for_update()).all()
    for job in jobs:
        job.state, job.finished_at = JobState.CANCELLED, now()
        transaction.session.flush()
        transaction.emit(document_id, job.id, "cancelled")
    return bool(jobs)


def cancel(store: Store, principal: Principal, document_id: str) -> Job:
    """End the document's unfinished job, whatever it is doing. ConflictError when there is none."""
    with (
        audit.refusals(store, principal, "document.cancel", document_id),
        store.transaction() as transaction,
    ):
        require(transaction.session, principal, Action.TRAIN, document_id, lock=True)
        if not cancel_unfinished(transaction, document_id):
            raise ConflictError("the document is not being trained; there is nothing to cancel")
        audit.note(transaction.session, principal, "document.cancel", document_id)
        return as_job(latest_job(transaction.session, document_id))


def retrain(store: Store, principal: Principal, document_id: str, recipe: dict[str, Any] | None) -> Job:
    """A new queued job with this recipe, or with the last one's unless that has succeeded. It gets what the
    last one left for a retry.

    ConflictError while a job is unfinished.
    """
    try:
        with (
            audit.refusals(store, principal, "document.train", document_id),
            _handing_over(store) as hand_over,
            store.transaction() as transaction,
        ):
            document = require(transaction.session, principal, Action.TRAIN, document_id, lock=True)
            last = latest_job(transaction.session, document_id)
            if last.state == JobState.SUCCEEDED and recipe is None:
                raise ConflictError("the document has its KM already; give a recipe to train it otherwise")
            if not JobState(last.state).finished:
                raise ConflictError("the document is being trained already; wait for the job to finish")
            quota.check(transaction.session, store.settings, document.owner_id, trainings=1)
            job = queue_job(transaction, document, last.recipe if recipe is None else recipe)
            if last.version == job.version:
                hand_over(last.id, job.id)
            audit.note(transaction.session, principal, "document.train", document_id)
            return job
    except IntegrityError as error:
        raise ConflictError("the document is being trained already; wait for the job to finish") from error


@contextmanager
def _handing_over(store: Store) -> Iterator[Callable[[str, str], None]]:
    """Within it the work directory of one job can be given to another; taken back when anything fails, since
    under the id of a job that does not exist it would never be purged."""
    moved: list[tuple[Path, Path]] = []

    def hand_over(old_id: str, new_id: str) -> None:
        old, new = store.layout.work_dir(old_id), store.layout.work_dir(new_id)
        if old.exists():
            old.rename(new)
            moved.append((old, new))

    try:
        yield hand_over
    except BaseException:
        for old, new in moved:
            new.rename(old)
        raise


def get(store: Store, job_id: str) -> Job:
    """The job."""
    with store.database.reading() as session:
        return as_job(find_job(session, job_id))


def of_document(store: Store, document_id: str) -> list[Job]:
    """All jobs of the document, newest first."""
    query = select(JobRow).where(JobRow.document_id == document_id).order_by(JobRow.sequence.desc())
    with store.database.reading() as session:
        return [as_job(row) for row in session.scalars(query)]


def recipe(store: Store, job_id: str) -> dict[str, Any]:
    """How the job is to be trained."""
    with store.database.reading() as session:
        return find_job(session, job_id).recipe


def claim(store: Store, job_id: str, held_by: str | None) -> Job | None:
    """Begin the next attempt, if the job is still queued."""
    with store.transaction() as transaction:
        session = transaction.session
        job = session.scalars(select(JobRow).where(JobRow.id == job_id).with_for_update()).one_or_none()
        if job is None or job.state != JobState.QUEUED:
            return None
        if (
            job.not_before is not None
            and timedelta(0) < job.not_before - transaction.moment() <= LONGEST_WAIT
        ):
            return None
        abandoned = job.km_id
        job.state, job.attempt, job.km_id = JobState.RUNNING, job.attempt + 1, new_id("km")
        job.held_by, job.error, job.not_before = held_by, None, None
        job.started_at, job.heartbeat_at = now(), transaction.moment()
        job.stage, job.step, job.total_steps = Stage.WAITING, 0, 0
        claimed = as_job(job)
    if abandoned is not None:
        # An attempt that died between moving its KM into place and committing leaves it under this id.
        # What stays while the store is away goes with the document.
        with suppress(StoreUnavailableError):
            store.artifacts.remove(store.layout.km(claimed.document_id, abandoned))
    return claimed


def fenced_update(transaction: Transaction, job_id: str, attempt: int, **values: Any) -> JobRow:
    """Change the running job's row; StaleAttemptError when the attempt does not own it."""
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state == JobState.RUNNING)
        .values(heartbeat_at=transaction.moment(), **values)
        .returning(JobRow)
    )
    row = transaction.session.scalars(statement).one_or_none()
    if row is None:
        raise StaleAttemptError(f"attempt {attempt} no longer owns job {job_id}; stop working on it")
    return row


def progress(
    store: Store,
    job_id: str,
    attempt: int,
    *,
    stage: Stage,
    step: int,
    total_steps: int,
    data: dict[str, Any],
) -> None:
    """Say how far the attempt is."""
    with store.transaction() as transaction:
        row = fenced_update(
            transaction, job_id, attempt, stage=Stage(stage), step=step, total_steps=total_steps
        )
        said = {**data, "stage": str(stage), "step": step, "total_steps": total_steps}
        transaction.emit(row.document_id, job_id, "progress", said)


def fail(store: Store, job_id: str, attempt: int, error: str, keep: Collection[str]) -> None:
    """End the job with a reason; of its work directory only what is named stays, for a retry."""
    with store.transaction() as transaction:
        row = fenced_update(transaction, job_id, attempt)
        mark_failed(store, transaction, row, error, keep)
        document_id = row.document_id
    handover.ended(store, document_id, job_id)


def storable(error: str) -> str:
    """A reason as it is kept: not endless, and without NUL, which PostgreSQL does not keep."""
    return error.replace("\0", "\N{REPLACEMENT CHARACTER}")[:_MAX_ERROR_CHARS]


def mark_failed(
    store: Store, transaction: Transaction, row: JobRow, error: str, keep: Collection[str] = ()
) -> None:
    """End the job with a reason, within the caller's transaction, which holds its row."""
    row.state, row.error, row.finished_at = JobState.FAILED, storable(error), now()
    row.held_by = None
    transaction.emit(row.document_id, row.id, "failed", {"error": row.error})
    # While the row is held: once it is seen as failed, what stays goes to the job that follows it.
    purge_work(store, row.id, keep)


def purge_work(store: Store, job_id: str, keep: Collection[str] = ()) -> None:
    """Empty the job's work directory but for the entries named."""
    directory = store.layout.work_dir(job_id)
    if not directory.exists():
        return
    kept = [entry for entry in directory.iterdir() if entry.name in keep]
    if not kept:
        purge_dir(directory)
        return
    for entry in directory.iterdir():
        if entry in kept:
            continue
        if entry.is_dir():
            purge_dir(entry)
        else:
            entry.unlink()


def release(store: Store, job_id: str, attempt: int) -> None:
    """Put the job back into the queue."""
    with store.transaction() as transaction:
        row = fenced_update(transaction, job_id, attempt, state=JobState.QUEUED, held_by=None)
        transaction.emit(row.document_id, job_id, "queued", {"attempt": attempt})


def cancelled(store: Store, job_id: str, attempt: int) -> bool:
    """Whether the attempt no longer owns the running job."""
    owned = select(JobRow.id).where(
        JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state == JobState.RUNNING
    )
    with store.database.reading() as session:
        return session.scalar(owned) is None


def put_stale_back(store: Store, stale_after: float) -> None:
    """Queue jobs again whose worker has been silent for `stale_after` seconds, or fail them.

    A worker that lives is never ahead of the clock by more than it beats: a heartbeat from further in the
    future is of one that died before the clock was set back.
    """
    with store.transaction() as transaction:
        _put_stale_back(store, transaction, stale_after)


def _put_stale_back(store: Store, transaction: Transaction, stale_after: float) -> None:
    # By the clock of the database, by which heartbeats are written too.
    present, lease = transaction.moment(), timedelta(seconds=stale_after)
    silent = or_(JobRow.heartbeat_at < present - lease, JobRow.heartbeat_at > present + abs(lease))
    stale = select(JobRow).where(JobRow.state == JobState.RUNNING, silent)
    # A row that somebody holds right now is being seen to; whoever waited for it could be waited for.
    ordered = stale.order_by(JobRow.sequence).with_for_update(skip_locked=True)
    for row in transaction.session.scalars(ordered).all():
        put_back_crashed(store, transaction, row, "its worker vanished")


def put_back_crashed(store: Store, transaction: Transaction, row: JobRow, reason: str) -> None:
    """Queue a running job again whose attempt ended without a word, or fail it after too many such ends."""
    row.crashes, row.held_by = row.crashes + 1, None
    if row.crashes <= store.settings.crash_retries:
        row.state = JobState.QUEUED
        transaction.emit(row.document_id, row.id, "queued", {"attempt": row.attempt, "reason": reason})
        return
    advice = f" (attempts that ended so: {row.crashes}); look into the worker's log, then retry"
    mark_failed(store, transaction, row, reason + advice)


def events_after(store: Store, document_id: str, event_id: int) -> list[Event]:
    """What happened after that event, oldest first."""
    query = select(EventRow).where(EventRow.document_id == document_id, EventRow.id > event_id)
    with store.database.reading() as session:
        return [as_event(row) for row in session.scalars(query.order_by(EventRow.id))]
