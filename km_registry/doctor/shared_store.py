"""What a store that machines share has of every artifact, and the copies of it on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select

from km_registry.artifact_store.base import Artifact
from km_registry.artifact_store.local import removed_here
from km_registry.artifact_store.shared import SharedStore
from km_registry.artifacts import MANIFEST, digest, verify, verify_ke
from km_registry.doctor.artifacts import trained_anew
from km_registry.doctor.findings import Finding
from km_registry.doctor.store_sweeping import of_nothing
from km_registry.errors import ArtifactError, StoreUnavailableError
from km_registry.store.layout import DOCUMENTS, KES, Layout
from km_registry.store.rows import as_km
from km_registry.store.store import Store
from km_registry.tables import DocumentRow, DocumentVersionRow, KERow, KMRow
from km_registry.types import KM

_FETCHED_ANEW = "the copy will be removed, and fetched anew when it is needed"


def copies(store: Store) -> Iterator[Finding]:
    """Every copy on this machine is what was recorded."""
    if not store.artifacts.is_shared:
        return
    named = _Named(store)
    wrong = [(path, _text_problem(path, sha256)) for path, sha256 in named.text_files()]
    wrong += [(named.km(km).path, _problem(named.km(km).path, km.digest, verify)) for km in named.kms]
    for ke_id, ke_digest in named.kes:
        path = store.layout.ke_dir(ke_id)
        wrong.append((path, _problem(path, ke_digest, verify_ke)))
    for path, problem in wrong:
        if problem is not None:
            subject = str(path.relative_to(store.layout.root))
            yield Finding(subject, problem, _FETCHED_ANEW, partial(removed_here, path))


def objects(store: Store) -> Iterator[Finding]:
    """The store has every artifact, as large as it was written, and nothing that belongs to nothing.

    Contents are compared with their digests whenever they are fetched.
    """
    shared = store.artifacts
    if not isinstance(shared, SharedStore):
        return
    try:
        # Listed before the rows are read: what comes in between has its row by then.
        present = shared.objects.below(DOCUMENTS, unfinished=True) | shared.objects.below(KES)
        named = _Named(store)
        yield from _missing(store, shared, named, present)
        yield from _strays(shared, named, present)
        yield from _leftovers(store, shared, present)
    except StoreUnavailableError as error:
        problem, _, remedy = str(error).partition(". ")
        yield Finding("KM_STORE_URL", problem, remedy)


class _Named:
    """What the records name."""

    def __init__(self, store: Store) -> None:
        self._layout: Layout = store.layout
        live = DocumentRow.deleted_at.is_(None)
        texts = (
            select(DocumentVersionRow)
            .join(DocumentRow, DocumentRow.id == DocumentVersionRow.document_id)
            .where(live, DocumentVersionRow.purged_at.is_(None))
        )
        answering = (
            select(KMRow)
            .join(DocumentRow, DocumentRow.id == KMRow.document_id)
            .where(live, KMRow.retired_at.is_(None))
        )
        with store.database.reading() as session:
            self.texts = session.scalars(texts).all()
            self.kms = [as_km(row, store.layout) for row in session.scalars(answering)]
            self.kes = [
                (row.id, row.digest)
                for row in session.scalars(select(KERow).where(KERow.deleted_at.is_(None)))
            ]
            self.documents = set(session.scalars(select(DocumentRow.id)))
            self.all_kes = set(session.scalars(select(KERow.id).where(KERow.purged_at.is_(None))))

    def text_files(self) -> Iterator[tuple[Path, str]]:
        """Where copies of texts lie, and their digests."""
        for row in self.texts:
            yield self._layout.text_file(row.document_id, row.version), row.sha256

    def km(self, km: KM) -> Artifact:
        """Where the KM lies."""
        return self._layout.km(km.document_id, km.id)


def _missing(
    store: Store, shared: SharedStore, named: _Named, present: Mapping[str, int]
) -> Iterator[Finding]:
    for row in named.texts:
        if present.get(store.layout.text(row.document_id, row.version).key) != row.size_bytes:
            yield Finding(
                row.document_id,
                "its text is not in the store as it was written",
                "delete the document and upload it again",
            )
    for km in named.kms:
        problem = _stored_problem(shared, named.km(km).key, km.digest, present)
        if problem is not None:
            remedy = "it will be removed and its document trained again"
            yield Finding(km.id, problem, remedy, trained_anew(store, km))
    for ke_id, ke_digest in named.kes:
        problem = _stored_problem(shared, store.layout.ke(ke_id).key, ke_digest, present)
        if problem is not None:
            yield Finding(ke_id, problem, "delete the KE and register it again")


def _strays(shared: SharedStore, named: _Named, present: Mapping[str, int]) -> Iterator[Finding]:
    homes = {"/".join(key.split("/")[:2]) for key in present}
    known = {f"{DOCUMENTS}/{one}" for one in named.documents} | {f"{KES}/{one}" for one in named.all_kes}
    for home in sorted(homes - known):
        if homes & known:
            yield Finding(
                f"{home} in the store",
                "it belongs to nothing that is recorded",
                "it will be removed",
                partial(shared.forget, home),
            )
        else:
            # None of it is ours.
            yield Finding(
                f"{home} in the store",
                "the store has nothing that this database knows",
                "correct KM_STORE_URL or KM_DATABASE_URL: one prefix is for one database",
            )


def _leftovers(store: Store, shared: SharedStore, present: Iterable[str]) -> Iterator[Finding]:
    with store.database.reading() as session:
        late = of_nothing(session, present)
    # What was left together is removed together.
    for home in sorted({key.rpartition("/")[0] for key in late}):
        yield Finding(
            f"{home} in the store",
            "it is left of a training that has ended",
            "it will be removed",
            partial(shared.forget, home),
        )


def _text_problem(path: Path, sha256: str) -> str | None:
    try:
        altered = hashlib.sha256(path.read_bytes()).hexdigest() != sha256
    except FileNotFoundError:
        return None
    return "it was altered" if altered else None


def _problem(path: Path, recorded: str, verified: Callable[..., dict[str, Any]]) -> str | None:
    if not path.is_dir():
        return None
    try:
        altered = digest(verified(path)) != recorded
    except (ArtifactError, FileNotFoundError) as error:
        return str(error).partition("; ")[0]
    return "it is not what was recorded: its digest is another" if altered else None


def _stored_problem(shared: SharedStore, key: str, recorded: str, present: Mapping[str, int]) -> str | None:
    try:
        manifest = json.loads(shared.objects.get(f"{key}/{MANIFEST}"))
        if digest(manifest) != recorded:
            return "it is not in the store as it was recorded: its digest is another"
        sizes = {name: file["bytes"] for name, file in manifest["files"].items()}
    except FileNotFoundError:
        return "it is not in the store"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest in the store cannot be read"
    if any(present.get(f"{key}/{name}") != size for name, size in sizes.items()):
        return "its files are not in the store as they were written"
    return None
