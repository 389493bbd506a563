"""The tables of what serves on one database: which installation it is, its gateways, what they let go of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from km_registry.tables_base import ID, Base, UtcDateTime


class InstallationRow(Base):
    """The one row that says which installation the database is of. Its shared store bears the same `id`.

    `home` is the data directory that has the artifacts, where there is no shared store.
    """

    __tablename__ = "installation"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    home: Mapped[str | None] = mapped_column(ID)


class GatewayRow(Base):
    """A gateway that serves, or did until it fell silent. `seen_at` is by the database's clock."""

    __tablename__ = "gateways"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    home: Mapped[str] = mapped_column(ID)
    host: Mapped[str] = mapped_column(String(255))
    engine: Mapped[str] = mapped_column(String(16))
    base_fingerprint: Mapped[str] = mapped_column(String(128))
    joined_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)


class EvictionRow(Base):
    """A gateway's word that its engine, its answers and its memory have nothing of something any more.

    `subject` is the id of a document, a KM or a KE, or a document's id with the number of a former version.
    """

    __tablename__ = "evictions"

    subject: Mapped[str] = mapped_column(String(64), primary_key=True)
    gateway_id: Mapped[str] = mapped_column(ID, primary_key=True)
    evicted: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
