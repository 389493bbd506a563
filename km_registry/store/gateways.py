"""Gateways that share the database: who lives, and who has let go of what was deleted.

All moments here are by the database's clock: gateways on machines whose clocks differ agree on who is silent.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from km_registry.fleet_types import (
    Acknowledged,
    Beat,
    Evicted,
    Gateway,
    Standing,
    Unacknowledged,
    subjects_of,
)
from km_registry.store import versions
from km_registry.store.store import Store
from km_registry.tables import DocumentRow, EvictionRow, GatewayRow, KERow, KMRow

#: A gateway that was silent for longer is not waited for. It serves nothing by then: see server.fencing.
LIVE = timedelta(seconds=15)
#: Acknowledgements, and gateways that fell silent, are kept for so long: receipts that are late need them.
KEPT = timedelta(days=1)
_AT_ONCE = 1000


def join(store: Store, gateway: Gateway) -> Beat:
    """Note that the gateway serves from here on. One before it with the same data directory has ended, since
    one gateway holds that at a time."""
    with store.transaction() as transaction:
        session = transaction.session
        moment = transaction.moment()
        session.execute(delete(GatewayRow).where(GatewayRow.home == gateway.home))
        session.add(_row(gateway, moment))
        return Beat(None, _others(session, gateway.id, moment))


def beat(store: Store, gateway: Gateway) -> Beat:
    """Say that the gateway lives."""
    with store.transaction() as transaction:
        session = transaction.session
        moment = transaction.moment()
        row, silent_s = session.get(GatewayRow, gateway.id, with_for_update=True), None
        if row is None:
            session.add(_row(gateway, moment))
        else:
            silent_s, row.seen_at = (moment - row.seen_at).total_seconds(), moment
        return Beat(silent_s, _others(session, gateway.id, moment))


def leave(store: Store, gateway_id: str) -> None:
    """Note that the gateway serves no more."""
    with store.transaction() as transaction:
        transaction.session.execute(delete(GatewayRow).where(GatewayRow.id == gateway_id))


def acknowledge(store: Store, gateway_id: str, subjects: Collection[str], evicted: Evicted) -> None:
    """Keep the gateway's word that it has nothing of these any more. Idempotent: what it had counts once."""
    with store.transaction() as transaction:
        session = transaction.session
        moment = transaction.moment()
        for number, subject in enumerate(subjects):
            if session.get(EvictionRow, (subject, gateway_id)) is None:
                found = (evicted if number == 0 else Evicted()).as_dict()
                row = EvictionRow(subject=subject, gateway_id=gateway_id, evicted=found, at=moment)
                session.add(row)


def acknowledged(
    store: Store, gateway_id: str, subjects: Collection[str], document_id: str | None
) -> Acknowledged:
    """Which gateways have let go of all of these, or of the document as a whole, and which others that live
    have not."""
    with store.database.reading() as session:
        others = {one.id for one in _others(session, gateway_id, store.database.moment(session))}
        which = [*subjects] if document_id is None else [*subjects, document_id]
        rows = session.scalars(select(EvictionRow).where(EvictionRow.subject.in_(which))).all()
    told: dict[str, dict[str, Evicted]] = {}
    for row in rows:
        told.setdefault(row.gateway_id, {})[row.subject] = Evicted.of_dict(row.evicted)
    by = {
        gateway: sum(of.values(), Evicted())
        for gateway, of in told.items()
        if document_id in of or set(subjects) <= of.keys()
    }
    return Acknowledged(by, tuple(sorted(others - by.keys())))


def living(store: Store) -> tuple[Gateway, ...]:
    """The gateways that live."""
    with store.database.reading() as session:
        return _others(session, "", store.database.moment(session))


def unacknowledged(store: Store, gateway_id: str) -> Unacknowledged:
    """What is gone, is not purged yet, and the gateway has not let go of."""
    deleted = select(DocumentRow.id).where(DocumentRow.deleted_at.is_not(None))
    kes = select(KERow.id).where(KERow.deleted_at.is_not(None), KERow.purged_at.is_(None))
    former = [versions.superseded(store, document_id) for document_id in versions.pending(store)]
    with store.database.reading() as session:
        document_ids, ke_ids = session.scalars(deleted).all(), session.scalars(kes).all()
        if not (document_ids or ke_ids or former):
            return Unacknowledged((), (), ())
        mine = select(EvictionRow.subject).where(EvictionRow.gateway_id == gateway_id)
        said = set(session.scalars(mine))
    return Unacknowledged(
        tuple(one for one in document_ids if one not in said),
        tuple(one for one in former if one is not None and not said.issuperset(subjects_of(one))),
        tuple(one for one in ke_ids if one not in said),
    )


def standing(
    store: Store, documents: Collection[str], kms: Collection[str], kes: Collection[str]
) -> Standing:
    """Which of these nobody has deleted or superseded."""
    live = select(DocumentRow.id).where(DocumentRow.deleted_at.is_(None))
    answering = select(KMRow.id).where(KMRow.retired_at.is_(None), KMRow.document_id.in_(live))
    usable = select(KERow.id).where(KERow.deleted_at.is_(None))
    with store.database.reading() as session:
        return Standing(
            _those(session, live, DocumentRow.id, documents),
            _those(session, answering, KMRow.id, kms),
            _those(session, usable, KERow.id, kes),
        )


def _those(
    session: Session, query: Select[str], column: InstrumentedAttribute[str], ids: Collection[str]
) -> frozenset[str]:
    """Which of the ids the query finds, however many they are."""
    ordered, found = sorted(ids), set[str]()
    for start in range(0, len(ordered), _AT_ONCE):
        found |= set(session.scalars(query.where(column.in_(ordered[start : start + _AT_ONCE]))))
    return frozenset(found)


def prune(store: Store) -> None:
    """Forget acknowledgements and silent gateways of long ago."""
    with store.transaction() as transaction:
        session = transaction.session
        before = transaction.moment() - KEPT
        session.execute(delete(EvictionRow).where(EvictionRow.at < before))
        session.execute(delete(GatewayRow).where(GatewayRow.seen_at < before))


def _others(session: Session, gateway_id: str, moment: datetime) -> tuple[Gateway, ...]:
    """The gateways that live, but this one."""
    live = select(GatewayRow).where(GatewayRow.id != gateway_id, GatewayRow.seen_at > moment - LIVE)
    return tuple(
        Gateway(row.id, row.home, row.host, row.engine, row.base_fingerprint)
        for row in session.scalars(live.order_by(GatewayRow.joined_at, GatewayRow.id))
    )


def _row(gateway: Gateway, moment: datetime) -> GatewayRow:
    return GatewayRow(
        id=gateway.id,
        home=gateway.home,
        host=gateway.host[:255],
        engine=gateway.engine,
        base_fingerprint=gateway.base_fingerprint,
        joined_at=moment,
        seen_at=moment,
    )
