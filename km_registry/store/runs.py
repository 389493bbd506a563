"""Runs: the processes that hold jobs.

A run is a worker's child. It may hold several jobs, and holds one that was taken away from it until it has
let go of its files.
"""

from __future__ import annotations

from sqlalchemy import select, update

from km_registry.store.jobs import put_back_crashed
from km_registry.store.store import Store
from km_registry.tables import JobRow
from km_registry.types import JobState, Run


def beat(store: Store, run_id: str) -> set[tuple[str, int]]:
    """Say that the run is alive; the (job, attempt) pairs that it still owns."""
    with store.transaction() as transaction:
        statement = (
            update(JobRow)
            .where(JobRow.held_by == run_id, JobRow.state == JobState.RUNNING)
            .values(heartbeat_at=transaction.moment())
            .returning(JobRow.id, JobRow.attempt)
        )
        return {(job_id, attempt) for job_id, attempt in transaction.session.execute(statement)}


def of_job(store: Store, job_id: str) -> Run | None:
    """The run that holds the job, with all that it holds."""
    holder = select(JobRow.held_by).where(JobRow.id == job_id).scalar_subquery()
    query = select(JobRow.held_by, JobRow.id).where(JobRow.held_by == holder).order_by(JobRow.sequence)
    with store.database.reading() as session:
        rows = session.execute(query).all()
    return Run(str(rows[0][0]), tuple(row[1] for row in rows)) if rows else None


def held(store: Store, run_id: str) -> list[str]:
    """Ids of the jobs that the run holds, oldest first."""
    query = select(JobRow.id).where(JobRow.held_by == run_id).order_by(JobRow.sequence)
    with store.database.reading() as session:
        return list(session.scalars(query))


def let_go(store: Store, run_id: str, job_id: str, attempt: int) -> None:
    """Say that the run has nothing open any more of a job that was taken away from it."""
    statement = (
        update(JobRow)
        .where(
            JobRow.id == job_id,
            JobRow.held_by == run_id,
            JobRow.attempt == attempt,
            JobRow.state != JobState.RUNNING,
        )
        .values(held_by=None)
    )
    with store.transaction() as transaction:
        transaction.session.execute(statement)


def end(store: Store, run_id: str, crash: str | None) -> None:
    """The run's process has ended: what it still holds waits for another, or fails after too many crashes."""
    with store.transaction() as transaction:
        held = select(JobRow).where(JobRow.held_by == run_id).order_by(JobRow.sequence).with_for_update()
        for row in transaction.session.scalars(held).all():
            row.held_by = None
            if row.state != JobState.RUNNING:
                continue
            if crash is not None:
                put_back_crashed(store, transaction, row, crash)
                continue
            row.state = JobState.QUEUED
            transaction.emit(row.document_id, row.id, "queued", {"attempt": row.attempt})
