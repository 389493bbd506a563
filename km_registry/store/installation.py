"""Database, data directory and shared store belong together: each bears the installation's mark, and a server
that finds those of two installations says so before it serves one's records with the other's files.

What bears no mark yet, as all that an earlier version made, is marked at the first start.
"""

from __future__ import annotations

import json

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from km_registry.artifact_store.base import ArtifactStore
from km_registry.artifact_store.shared import SharedStore
from km_registry.errors import InstallationError
from km_registry.files import atomic_write
from km_registry.ids import new_id
from km_registry.store.database import Database
from km_registry.store.gateways import LIVE
from km_registry.store.layout import Layout, document_key
from km_registry.store.store import Store
from km_registry.tables import DocumentRow, EvictionRow, GatewayRow, InstallationRow

#: In the data directory, and the key in a shared store.
MARK = "installation.json"
#: Documents that are looked for where the expected mark is not. One suffices: others may be damaged.
_LOOKED_FOR = 20


def home_of(layout: Layout) -> str | None:
    """The data directory's id; None when it has none."""
    try:
        return _id_in((layout.root / MARK).read_bytes(), "the data directory")
    except FileNotFoundError:
        return None


def take_home(store: Store) -> str:
    """Make sure that the database's files are those of this data directory, or in a shared store; the data
    directory's id. For a gateway that starts. InstallationError says what to correct."""
    home = home_of(store.layout)
    if home is None:
        home = new_id("dir")
        atomic_write(store.layout.root / MARK, json.dumps({"id": home}).encode())
    with store.transaction() as transaction:
        session = transaction.session
        store.database.serialize(session)
        row = _row(session)
        kept = None if store.artifacts.is_shared else home
        if row.home != kept or not store.artifacts.is_shared:
            _refuse_unless_here(store, session, row, home)
        row.home = kept
    return home


def check_home(store: Store) -> None:
    """The same for a worker, which marks nothing. InstallationError when the files are elsewhere."""
    with store.database.reading() as session:
        row = session.scalars(select(InstallationRow)).one_or_none()
        home = None if row is None else row.home
    if home is not None and not store.artifacts.is_shared and home != home_of(store.layout):
        raise InstallationError(_elsewhere(store))


def check_store(store: Store) -> None:
    """Make sure that the shared store, if there is one, is this database's; it is marked if it has no mark.

    InstallationError says what to correct; StoreUnavailableError: ask again when it is there.
    """
    if not isinstance(store.artifacts, SharedStore):
        return
    with store.database.reading() as session:
        row = session.scalars(select(InstallationRow)).one_or_none()
    if row is None:
        return  # no gateway has started yet
    found = _mark_of(store.artifacts)
    if found is None:
        _refuse_unless_stored(store, store.artifacts)
        store.artifacts.objects.put(MARK, json.dumps({"id": row.id}).encode())
        found = _mark_of(store.artifacts)
    if found != row.id:
        raise InstallationError(
            "The store of KM_STORE_URL belongs to another database: texts and KMs of this one are not in it. "
            "Correct KM_STORE_URL or KM_DATABASE_URL (one bucket and prefix is for one database), or put a "
            "backup back with km restore."
        )


def renew(database: Database, artifacts: ArtifactStore) -> None:
    """After a restore: the database is of whichever data directory it is started with, and of the shared
    store that it was restored into."""
    found = _mark_of(artifacts) if isinstance(artifacts, SharedStore) else None
    with database.writing() as session:
        for table in (InstallationRow, GatewayRow, EvictionRow):
            session.execute(delete(table))
        if found is not None:
            session.add(InstallationRow(id=found))


def _row(session: Session) -> InstallationRow:
    row = session.scalars(select(InstallationRow)).one_or_none()
    if row is None:
        row = InstallationRow(id=new_id("ins"))
        session.add(row)
    return row


def _refuse_unless_here(store: Store, session: Session, row: InstallationRow, home: str) -> None:
    """InstallationError unless this data directory has the files of the database, if any has."""
    if not store.settings.database_url:
        return  # the database lies in it
    moment = store.database.moment(session)
    others = (GatewayRow.seen_at > moment - LIVE, GatewayRow.home != home)
    if not store.artifacts.is_shared and session.scalar(select(func.count()).where(*others)):
        raise InstallationError(
            "Another gateway serves from this database with a data directory of its own, so that each would "
            "lack the other's texts and KMs. Give both the same KM_STORE_URL, or this one another "
            "KM_DATABASE_URL. (If the other one was killed just now, start again in 15 seconds.)"
        )
    if row.home != home and not _texts_are_here(store, session):
        raise InstallationError(_elsewhere(store))


def _texts_are_here(store: Store, session: Session) -> bool:
    """Whether one of the newest documents' texts is in the data directory, if there are any."""
    newest = _newest(session)
    return not newest or any(store.layout.text_file(*one).is_file() for one in newest)


def _newest(session: Session) -> list[tuple[str, int]]:
    """The newest documents, each with its version."""
    newest = (
        select(DocumentRow.id, DocumentRow.version)
        .where(DocumentRow.deleted_at.is_(None))
        .order_by(DocumentRow.sequence.desc())
        .limit(_LOOKED_FOR)
    )
    return [(row.id, row.version) for row in session.execute(newest)]


def _refuse_unless_stored(store: Store, shared: SharedStore) -> None:
    """InstallationError unless a store without a mark has one of the newest documents, if there are any."""
    with store.database.reading() as session:
        keys = [document_key(document_id) for document_id, _ in _newest(session)]
    if keys and not any(shared.objects.below(key) for key in keys):
        raise InstallationError(
            f"The store of KM_STORE_URL has none of the {len(keys)} newest documents of this database. "
            "Correct KM_STORE_URL or KM_DATABASE_URL."
        )


def _elsewhere(store: Store) -> str:
    if store.artifacts.is_shared:
        return (
            "The texts and KMs of this database are in a data directory, not in the store of KM_STORE_URL. "
            "Start without KM_STORE_URL; or back it up (km backup) and restore that with KM_STORE_URL into "
            "another data directory and an empty database."
        )
    return (
        f"The texts and KMs of this database are not in the data directory {store.layout.root}. Correct "
        "KM_DATA_DIR or KM_DATABASE_URL, or set the KM_STORE_URL that the database is used with."
    )


def _mark_of(artifacts: SharedStore) -> str | None:
    try:
        return _id_in(artifacts.objects.get(MARK), "the store of KM_STORE_URL")
    except FileNotFoundError:
        return None


def _id_in(data: bytes, where: str) -> str:
    try:
        return str(json.loads(data)["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise InstallationError(
            f"{MARK} in {where} cannot be read; remove it if that is this database's, and start again."
        ) from error
