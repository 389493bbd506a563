"""What one owner may keep and have trained at a time, as the settings say; counted where it is taken."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from km_registry.config import RegistrySettings
from km_registry.errors import QuotaError
from km_registry.tables import DocumentRow, JobRow, UserRow
from km_registry.types import JobState

_A_TRAINING_S = 60
_A_DELETION_S = 3600


def check(
    session: Session,
    settings: RegistrySettings,
    owner_id: str,
    *,
    documents: int = 0,
    size: int = 0,
    trainings: int = 0,
) -> None:
    """QuotaError unless so much more fits, within the caller's transaction.

    `size` is in bytes; less of it than before always fits.
    """
    limits = (settings.owner_documents, settings.owner_bytes, settings.owner_trainings)
    if limits == (None, None, None):
        return
    # Held, so that of two uploads at once the second counts the first one's. After any document's row.
    session.get(UserRow, owner_id, with_for_update={"key_share": True}, populate_existing=True)
    owned = (DocumentRow.owner_id == owner_id, DocumentRow.deleted_at.is_(None))
    if documents and settings.owner_documents is not None:
        kept = session.scalar(select(func.count()).select_from(DocumentRow).where(*owned)) or 0
        _refuse(kept + documents, settings.owner_documents, "documents", _A_DELETION_S)
    if size > 0 and settings.owner_bytes is not None:
        held = session.scalar(select(func.sum(DocumentRow.size_bytes)).where(*owned)) or 0
        _refuse(held + size, settings.owner_bytes, "bytes of documents", _A_DELETION_S)
    if trainings and settings.owner_trainings is not None:
        unfinished = (
            select(func.count())
            .select_from(JobRow)
            .join(DocumentRow, DocumentRow.id == JobRow.document_id)
            .where(*owned, JobRow.state.in_([JobState.QUEUED, JobState.RUNNING]))
        )
        going_on = session.scalar(unfinished) or 0
        _refuse(going_on + trainings, settings.owner_trainings, "unfinished trainings", _A_TRAINING_S)


def _refuse(wanted: int, most: int, what: str, retry_after_s: int) -> None:
    if wanted > most:
        remedy = "wait until one is finished" if what == "unfinished trainings" else "delete a document first"
        raise QuotaError(
            f"that would make {wanted} {what}, and one owner may have {most}; {remedy}",
            retry_after_s=retry_after_s,
        )
