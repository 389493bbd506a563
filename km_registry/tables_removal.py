"""The table of removals: of a KM alone, a version, a user."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from km_registry.tables_base import ID, Base, UtcDateTime


class RemovalRow(Base):
    """A removal that was asked for; once it has `completed_at` it is the receipt.

    Holds ids, which may be of what is gone, and no content. `owner_id` is whose it was.
    """

    __tablename__ = "removals"
    __table_args__ = ({"sqlite_autoincrement": True},)

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(ID, unique=True)
    kind: Mapped[str] = mapped_column(String(16))
    owner_id: Mapped[str] = mapped_column(ID)
    requested_by: Mapped[str] = mapped_column(ID)
    requested_at: Mapped[datetime] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    document_id: Mapped[str | None] = mapped_column(ID)
    version: Mapped[int | None]
    km_ids: Mapped[list[str]] = mapped_column(JSON)
    purged: Mapped[dict[str, Any]] = mapped_column(JSON)
