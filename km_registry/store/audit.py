"""The audit log: who did or tried what, on which id. It never holds a text, a title, a question or a name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import CursorResult, delete, insert, or_, select
from sqlalchemy.orm import Session

from km_registry.access import may_administer
from km_registry.errors import NotFoundError
from km_registry.store.store import Store, now
from km_registry.tables import AuditRow, DocumentRow, GrantRow
from km_registry.types import AuditEntry, Claim, Principal, Role

DONE = "done"
REFUSED = "refused"
#: What a client calls an id may be anything, a text included.
_ID = re.compile(r"[a-z]{2,4}_[a-z2-7]{1,27}")


def note(
    session: Session,
    principal: Principal | None,
    action: str,
    target_id: str | None = None,
    other_id: str | None = None,
    *,
    outcome: str = DONE,
) -> None:
    """Note what is done in the caller's transaction, so that it cannot happen unnoted. None is the server."""
    session.add(AuditRow(**_fields(principal, action, target_id, other_id, outcome)))


def note_asked(store: Store, claims: Sequence[Claim]) -> None:
    """Note that these documents were asked, each by the claim's principal: all in one transaction."""
    notes = [
        _fields(claim.principal, f"document.{claim.action}", claim.document_id, None, DONE)
        for claim in claims
    ]
    with store.transaction() as transaction:
        # By columns and not by entities, since every answer waits for it.
        transaction.session.connection().execute(_NOTE, notes)


_NOTE = insert(AuditRow)


def _fields(
    principal: Principal | None, action: str, target_id: str | None, other_id: str | None, outcome: str
) -> dict[str, Any]:
    return {
        "at": now(),
        "actor_id": principal.user_id if principal else None,
        "key_id": principal.key_id if principal else None,
        "action": action,
        "target_id": _checked(target_id),
        "other_id": _checked(other_id),
        "outcome": outcome,
    }


@contextmanager
def refusals(store: Store, principal: Principal, action: str, target_id: str) -> Iterator[None]:
    """Note it when the block refuses: what is not there and what is not theirs alike, and in a transaction of
    its own, since the block's is rolled back."""
    try:
        yield
    except NotFoundError:
        with store.transaction() as transaction:
            note(transaction.session, principal, action, target_id, outcome=REFUSED)
        raise


def entries(
    store: Store,
    principal: Principal,
    *,
    actor_id: str | None,
    target_id: str | None,
    before: int | None,
    limit: int,
) -> list[AuditEntry]:
    """Entries that the principal may see, newest first: an administrator all of them, anybody else what they
    did themselves, what was done to them, and what was done with the documents that they own."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if not may_administer(principal):
        owned = select(GrantRow.document_id).where(
            GrantRow.user_id == principal.user_id, GrantRow.role == Role.OWNER
        )
        uploaded = select(DocumentRow.id).where(DocumentRow.owner_id == principal.user_id)
        query = query.where(
            or_(
                AuditRow.actor_id == principal.user_id,
                AuditRow.target_id == principal.user_id,
                AuditRow.other_id == principal.user_id,
                AuditRow.target_id.in_(owned.union(uploaded)),
            )
        )
    if actor_id is not None:
        query = query.where(AuditRow.actor_id == actor_id)
    if target_id is not None:
        query = query.where(or_(AuditRow.target_id == target_id, AuditRow.other_id == target_id))
    if before is not None:
        query = query.where(AuditRow.id < before)
    with store.database.reading() as session:
        return [_as_entry(row) for row in session.scalars(query)]


def prune(store: Store, before: datetime) -> int:
    """Forget entries older than that; how many there were."""
    with store.transaction() as transaction:
        removed = transaction.session.execute(delete(AuditRow).where(AuditRow.at < before))
        assert isinstance(removed, CursorResult)
        return removed.rowcount


def _checked(found: str | None) -> str | None:
    if found is None or _ID.fullmatch(found):
        return found
    return "(malformed)"


def _as_entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        row.id, row.at, row.actor_id, row.key_id, row.action, row.target_id, row.other_id, row.outcome
    )
