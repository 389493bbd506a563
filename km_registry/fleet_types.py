"""Gateways that serve from one database, and what they say of what was deleted. Plain frozen records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from km_registry.types import Superseded


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway while it runs; `gtw_…`, another one at every start. `home` is its data directory's id."""

    id: str
    home: str
    host: str
    engine: str
    base_fingerprint: str


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat found: for how many seconds the gateway had been silent by the database's clock (None
    when the database did not know it), and the others that live."""

    silent_s: float | None
    others: tuple[Gateway, ...]


@dataclass(frozen=True, slots=True)
class Evicted:
    """What engines let go of: adapters that were in memory, those in slots, whether cached prefixes were
    forgotten by then, and the replicas that acknowledged, of engines that have some."""

    adapters: int = 0
    slots: int = 0
    prefixes_forgotten: bool = True
    replicas: tuple[str, ...] = ()

    def __add__(self, other: Evicted) -> Evicted:
        """What both let go of together."""
        return Evicted(
            self.adapters + other.adapters,
            self.slots + other.slots,
            self.prefixes_forgotten and other.prefixes_forgotten,
            tuple(sorted({*self.replicas, *other.replicas})),
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @classmethod
    def of_dict(cls, fields: dict[str, Any]) -> Self:
        """As it was kept."""
        return cls(**{**fields, "replicas": tuple(fields["replicas"])})


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Who let go of something, and what of it each gateway had; `awaited` live, and have not yet."""

    by: dict[str, Evicted] = field(default_factory=dict)
    awaited: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unacknowledged:
    """What is gone and a gateway has not let go of: deleted documents, superseded KMs and texts, KEs."""

    documents: tuple[str, ...]
    superseded: tuple[Superseded, ...]
    kes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """Which of some documents, KMs and KEs nobody has deleted or superseded."""

    documents: frozenset[str]
    kms: frozenset[str]
    kes: frozenset[str]


def subjects_of(gone: Superseded) -> tuple[str, ...]:
    """What a gateway acknowledges that lets go of superseded KMs and texts."""
    return (*(km.id for km in gone.kms), *(f"{gone.document_id}.{version}" for version in gone.versions))
