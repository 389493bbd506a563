"""What came into a shared store late: written by a worker that was killed, or did not know yet that it had
lost its job, when the training had ended or the document was deleted already."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from km_registry.artifact_store.shared import SharedStore
from km_registry.store.layout import document_key
from km_registry.store.store import Store, now
from km_registry.tables import DocumentRow, JobRow, KMRow, ReceiptRow
from km_registry.types import JobState

#: When a document is looked at, after a training of it or it itself has ended: at once; when whoever lost it
#: has noticed; and when the longest write must have ended (see `artifact_store.objects`).
_LOOKS = (timedelta(0), timedelta(seconds=30), timedelta(minutes=11))
#: How long ago what has ended is looked for: longer than the last look, for a server that was started since.
_REMEMBERED = timedelta(minutes=15)


class StoreSweeper:
    """Looks at what ended lately, some times each, since what comes late comes soon or not at all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ended: set[tuple[datetime, str]] = set()
        self._due: set[tuple[datetime, str]] = set()

    def sweep(self) -> int:
        """Look at what is due; how many objects were removed. StoreUnavailableError: all of it stays due."""
        shared, present = self._store.artifacts, now()
        if not isinstance(shared, SharedStore):
            return 0
        ended = self._ended_since(present - _REMEMBERED)
        self._due |= {(at + wait, document) for at, document in ended - self._ended for wait in _LOOKS}
        self._ended = ended
        removed = sum(self._look(shared, one) for one in {one for at, one in self._due if at <= present})
        self._due = {(at, one) for at, one in self._due if at > present}
        return removed

    def _ended_since(self, moment: datetime) -> set[tuple[datetime, str]]:
        jobs = select(JobRow.finished_at, JobRow.document_id).where(JobRow.finished_at >= moment)
        deleted = select(ReceiptRow.completed_at, ReceiptRow.document_id).where(
            ReceiptRow.completed_at >= moment
        )
        with self._store.database.reading() as session:
            found = [*session.execute(jobs), *session.execute(deleted)]
        return {(at, document_id) for at, document_id in found if at is not None}

    def _look(self, shared: SharedStore, document_id: str) -> int:
        # Listed before the rows are read: what is made in between has its row by then.
        present = shared.objects.below(document_key(document_id), unfinished=True)
        if not present:
            return 0
        with self._store.database.reading() as session:
            if session.get(ReceiptRow, document_id) is not None:
                late = list(present)
            else:
                late = of_nothing(session, present, document_id)
        shared.objects.delete(late)
        return len(late)


def of_nothing(session: Session, keys: Iterable[str], document_id: str | None = None) -> list[str]:
    """Those of these keys that belong to no KM and no unfinished training of a live document, but lie where
    such things do. With a document the keys are its own."""
    documents = select(DocumentRow.id).where(DocumentRow.deleted_at.is_(None))
    kms = select(KMRow.id)
    jobs = select(JobRow.id, JobRow.km_id).where(JobRow.state.in_([JobState.QUEUED, JobState.RUNNING]))
    if document_id is not None:
        documents = documents.where(DocumentRow.id == document_id)
        kms = kms.where(KMRow.document_id == document_id)
        jobs = jobs.where(JobRow.document_id == document_id)
    live = set(session.scalars(documents))
    named = {None, *session.scalars(kms), *(one for row in session.execute(jobs) for one in row)}
    return [key for key in keys if _owner(key, live) not in named]


def _owner(key: str, live: Collection[str]) -> str | None:
    """The id of the KM or job of a live document that the key is of."""
    match key.split("/"):
        case [_, document_id, "kms" | "work", owner, _, *_] if document_id in live:
            return owner
    return None
