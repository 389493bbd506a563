"""The tables. Everything a table says about state is written in transactions of `km_registry.store`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from km_registry.tables_access import ApiKeyRow, AuditRow, GrantRow, GroupRow, MembershipRow, UserRow
from km_registry.tables_base import ID as _ID
from km_registry.tables_base import SHA256 as _SHA256
from km_registry.tables_base import Base, UtcDateTime
from km_registry.tables_fleet import EvictionRow, GatewayRow, InstallationRow
from km_registry.tables_removal import RemovalRow

__all__ = [
    "ApiKeyRow",
    "AuditRow",
    "Base",
    "DocumentRow",
    "DocumentVersionRow",
    "EventRow",
    "EvictionRow",
    "GatewayRow",
    "GrantRow",
    "GroupRow",
    "InstallationRow",
    "JobRow",
    "KERow",
    "KMRow",
    "MembershipRow",
    "ReceiptRow",
    "RemovalRow",
    "UserRow",
    "UtcDateTime",
]


class DocumentRow(Base):
    """A document; a tombstoned one has `deleted_at` and is kept until its receipt is written.

    `sequence` orders documents, since clocks may stand still or step back. `purged` adds up what was purged.
    `owner_id` is who uploaded it and answers for its size; who may do what is in the grants. Title, sha256
    and size are those of the newest version, whose number is `version`.
    """

    __tablename__ = "documents"
    __table_args__ = (
        # A tombstoned document must not stand in the way of the same text uploaded anew.
        Index(
            "uq_documents_live_content",
            "owner_id",
            "sha256",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    title: Mapped[str] = mapped_column(String(300))
    sha256: Mapped[str] = mapped_column(_SHA256)
    size_bytes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    purged: Mapped[dict[str, Any]] = mapped_column(JSON)
    version: Mapped[int] = mapped_column(server_default="1")
    deleted_by: Mapped[str | None] = mapped_column(_ID)


class DocumentVersionRow(Base):
    """A version that a document has or had; `purged_at` tells when the text of a former one was removed."""

    __tablename__ = "document_versions"

    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(String(300))
    sha256: Mapped[str] = mapped_column(_SHA256)
    size_bytes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    purged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class JobRow(Base):
    """A training run; this row is the truth about it.

    `km_id` is the id that the present attempt's KM will have: reserved when the attempt begins, so that
    whatever a crashed attempt left in the file system can be found. `held_by` names the run (a worker's child
    process) that works on the job, or still has to let go of one that was taken away. `crashes` counts the
    attempts that ended without a word, `retries` those that failed for a passing reason; the next one is not
    before `not_before`.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(
            "uq_jobs_unfinished",
            "document_id",
            unique=True,
            sqlite_where=text("state IN ('queued', 'running')"),
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
        Index("ix_jobs_state", "state"),
        Index("ix_jobs_held_by", "held_by"),
        {"sqlite_autoincrement": True},
    )

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id"), index=True)
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    stage: Mapped[str] = mapped_column(String(16))
    step: Mapped[int]
    total_steps: Mapped[int]
    recipe: Mapped[dict[str, Any]] = mapped_column(JSON)
    km_id: Mapped[str | None] = mapped_column(_ID)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    error: Mapped[str | None] = mapped_column(Text)
    version: Mapped[int] = mapped_column(server_default="1")
    held_by: Mapped[str | None] = mapped_column(String(64))
    crashes: Mapped[int] = mapped_column(server_default=text("0"))
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    retries: Mapped[int] = mapped_column(server_default=text("0"))
    not_before: Mapped[datetime | None] = mapped_column(UtcDateTime)


class KMRow(Base):
    """A published KM. `engine_id` is the engine's integer for it, never given to another.

    From `retired_at` on another KM answers for the document, and this one waits to be evicted and purged.
    """

    __tablename__ = "kms"
    __table_args__ = (
        Index(
            "uq_kms_answering",
            "document_id",
            unique=True,
            sqlite_where=text("retired_at IS NULL"),
            postgresql_where=text("retired_at IS NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    engine_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    attempt: Mapped[int]
    digest: Mapped[str] = mapped_column(_SHA256)
    base_fingerprint: Mapped[str] = mapped_column(String(128))
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    version: Mapped[int] = mapped_column(server_default="1")
    retired_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class KERow(Base):
    """A registered KE. `default_for` is the fingerprint of the base model whose default it is.

    The row of a deleted one stays, so that its version's number is not given again.
    """

    __tablename__ = "kes"
    __table_args__ = (UniqueConstraint("name", "version"), UniqueConstraint("default_for"))

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(_SHA256, index=True)
    base_model: Mapped[str] = mapped_column(String(300))
    base_fingerprint: Mapped[str] = mapped_column(String(128))
    rank: Mapped[int]
    prompt_format: Mapped[str] = mapped_column(String(64))
    trained: Mapped[str] = mapped_column(String(16))
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    default_for: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    purged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EventRow(Base):
    """Something that happened to a document's job."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_document_id_id", "document_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ReceiptRow(Base):
    """Proof of a deletion. Refers to no document row, since that is gone; `requested_by` may be an id that is
    gone as well."""

    __tablename__ = "receipts"

    document_id: Mapped[str] = mapped_column(_ID, primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    requested_at: Mapped[datetime] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    purged: Mapped[dict[str, Any]] = mapped_column(JSON)
    requested_by: Mapped[str | None] = mapped_column(_ID)
