"""Publishing a KM: from a staged directory to a row that answers questions, or nothing at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from km_registry import artifacts
from km_registry.errors import ArtifactError, StaleAttemptError, StoreUnavailableError
from km_registry.store import handover
from km_registry.store.jobs import fenced_update, purge_work
from km_registry.store.rows import as_km, find_job, live_document
from km_registry.store.store import Store, Transaction, now
from km_registry.tables import KMRow
from km_registry.types import KM, JobState, Stage


def publish(store: Store, job_id: str, attempt: int, staged: Path, metrics: dict[str, Any]) -> KM:
    """Verify the staged directory, move it into place and record it, all within the fence of the attempt."""
    try:
        manifest = artifacts.verify(staged, max_rank=store.settings.lora_rank)
        with _shared(store, job_id, attempt, staged, manifest):
            km = _publish_verified(store, job_id, attempt, staged, _finite(metrics), manifest)
    except StaleAttemptError:
        # The document may be deleted and purged by now: what was learned from it must go too.
        artifacts.purge_dir(staged)
        raise
    handover.ended(store, km.document_id, job_id)
    return km


@contextmanager
def _shared(
    store: Store, job_id: str, attempt: int, staged: Path, manifest: dict[str, Any]
) -> Iterator[None]:
    """Within it the KM lies in the shared store, where no row names it yet; taken back when anything fails.

    Before the transaction, which no upload should hold up. A deletion that comes between is seen by the
    transaction.
    """
    if not store.artifacts.is_shared:
        yield
        return
    with store.database.reading() as session:
        job = find_job(session, job_id)
        owned = (job.attempt, job.state) == (attempt, JobState.RUNNING)
        document_id, km_id = job.document_id, job.km_id
    if not owned or km_id is None or manifest["document_id"] != document_id:
        yield  # refused below, with the reason
        return
    artifact = store.layout.km(document_id, km_id)
    store.artifacts.publish(artifact, staged)
    try:
        yield
    except BaseException:
        with suppress(StoreUnavailableError, SQLAlchemyError):
            # The commit may have been made although its answer, or we, were cut off.
            if not _is_published(store, km_id):
                store.artifacts.remove(artifact)
        raise


def _is_published(store: Store, km_id: str) -> bool:
    with store.database.reading() as session:
        return session.scalar(select(KMRow.id).where(KMRow.id == km_id)) is not None


def _publish_verified(
    store: Store, job_id: str, attempt: int, staged: Path, metrics: dict[str, Any], manifest: dict[str, Any]
) -> KM:
    moved: Path | None = None
    try:
        with store.transaction() as transaction:
            row = _insert(transaction, job_id, attempt, metrics, manifest)
            # Moved while the job's row is held: no claim, tombstone or purge can come between.
            target = store.layout.km_dir(row.id)
            moved = artifacts.move_into_place(staged, target)
            # What was written on the way is of no more use, and it quotes the document.
            purge_work(store, job_id)
            return as_km(row, store.layout)
    except BaseException:
        if moved is not None:
            artifacts.purge_dir(moved)
        raise


def _insert(
    transaction: Transaction,
    job_id: str,
    attempt: int,
    metrics: dict[str, Any],
    manifest: dict[str, Any],
) -> KMRow:
    session = transaction.session
    job = fenced_update(
        transaction,
        job_id,
        attempt,
        state=JobState.SUCCEEDED,
        stage=Stage.DONE,
        finished_at=now(),
        held_by=None,
    )
    document = live_document(session, job.document_id)
    if job.version != document.version:
        raise StaleAttemptError(f"{document.id} has a newer version than job {job_id} trains; stop it")
    if (manifest["document_id"], manifest["document_sha256"]) != (document.id, document.sha256):
        raise ArtifactError(
            f"the manifest is of another document than {document.id}; stage this job's own KM"
        )
    assert job.km_id is not None, "claim reserves the id"
    # The KM so far answers until this very commit; then it waits to be evicted and purged.
    answering = (KMRow.document_id == document.id, KMRow.retired_at.is_(None))
    session.execute(update(KMRow).where(*answering).values(retired_at=now()))
    row = KMRow(
        id=job.km_id,
        document_id=document.id,
        job_id=job_id,
        attempt=attempt,
        digest=artifacts.digest(manifest),
        base_fingerprint=manifest["base_fingerprint"],
        metrics=metrics,
        created_at=now(),
        version=job.version,
    )
    session.add(row)
    session.flush()
    transaction.emit(
        document.id, job_id, "published", {"km_id": row.id, "version": row.version, "metrics": metrics}
    )
    return row


def _finite(metrics: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(metrics, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"the metrics are not finite JSON ({error}); give finite numbers only") from error
    return metrics
