"""Files that rows name: texts and KMs, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy import delete, select

from km_registry import artifacts
from km_registry.doctor.findings import Finding
from km_registry.doctor.records import trains_again
from km_registry.errors import ArtifactError, NotFoundError
from km_registry.store.documents import read_text
from km_registry.store.rows import as_km
from km_registry.store.store import Store
from km_registry.tables import DocumentRow, DocumentVersionRow, KERow, KMRow
from km_registry.types import KM


def texts(store: Store) -> Iterator[Finding]:
    """The text of every document is there, and is what was uploaded."""
    if store.artifacts.is_shared:
        return  # see `shared_store`
    live = select(DocumentRow.id, DocumentRow.version).where(DocumentRow.deleted_at.is_(None))
    with store.database.reading() as session:
        rows = session.execute(live.order_by(DocumentRow.sequence)).all()
    for document_id, version in rows:
        try:
            read_text(store, document_id, version)
        except ArtifactError as error:
            problem, _, remedy = str(error).partition("; ")
            yield Finding(document_id, problem, remedy)
        except NotFoundError:
            continue  # deleted since, or without its version, which `records.versions` says


def kms(store: Store) -> Iterator[Finding]:
    """Every KM is whole, is the one that was published, and knows the text that its version has."""
    if store.artifacts.is_shared:
        return
    query = (
        select(KMRow, DocumentVersionRow.sha256)
        .join(DocumentRow, DocumentRow.id == KMRow.document_id)
        .outerjoin(
            DocumentVersionRow,
            (DocumentVersionRow.document_id == KMRow.document_id)
            & (DocumentVersionRow.version == KMRow.version),
        )
        # One that is retired waits for its purge, and may be half gone.
        .where(DocumentRow.deleted_at.is_(None), KMRow.retired_at.is_(None))
        .order_by(KMRow.engine_id)
    )
    with store.database.reading() as session:
        rows = [(as_km(row, store.layout), sha256) for row, sha256 in session.execute(query)]
    for km, text_sha256 in rows:
        problem = _problem(store, km, text_sha256)
        if problem is not None:
            remedy = "it will be removed and its document trained again"
            yield Finding(km.id, problem, remedy, trained_anew(store, km))


def kes(store: Store) -> Iterator[Finding]:
    """Every KE is whole, and is the one that was registered."""
    if store.artifacts.is_shared:
        return
    query = select(KERow.id, KERow.name, KERow.digest).where(KERow.deleted_at.is_(None))
    with store.database.reading() as session:
        rows = session.execute(query.order_by(KERow.name, KERow.version)).all()
    for ke_id, name, digest in rows:
        try:
            manifest = artifacts.verify_ke(store.layout.ke_dir(ke_id))
            problem = None if artifacts.digest(manifest) == digest else "it is not the KE that was registered"
        except ArtifactError as error:
            problem = str(error).partition("; ")[0]
        except FileNotFoundError:
            problem = "its files are missing"
        if problem is not None:
            yield Finding(ke_id, problem, f"delete the KE and register {name} again")


def _problem(store: Store, km: KM, text_sha256: str | None) -> str | None:
    directory = store.layout.km_dir(km.id)
    if not directory.is_dir():
        return "its files are missing"
    try:
        manifest = artifacts.verify(directory, base_fingerprint=km.base_fingerprint)
    except ArtifactError as error:
        return str(error).partition("; ")[0]
    if artifacts.digest(manifest) != km.digest:
        return "it is not the KM that was published: its digest is another"
    if manifest["document_id"] != km.document_id:
        return f"it is of another document, {manifest['document_id']}"
    if manifest["document_sha256"] != text_sha256:
        return "it was trained on another text than its version has"
    return None


def trained_anew(store: Store, km: KM) -> Callable[[], None]:
    """A repair: the KM is gone afterwards, and its document has a queued job."""
    train = trains_again(store, km.document_id)

    def repair() -> None:
        with store.transaction() as transaction:
            transaction.session.execute(delete(KMRow).where(KMRow.id == km.id))
        store.artifacts.remove(store.layout.km(km.document_id, km.id))
        train()

    return repair
