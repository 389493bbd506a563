"""Files that no row names: what a crash left, or somebody put there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from km_registry.artifacts import purge_dir, purge_file
from km_registry.composites import ALONE
from km_registry.doctor.findings import Finding
from km_registry.store.layout import Layout
from km_registry.store.store import Store
from km_registry.tables import DocumentRow, DocumentVersionRow, JobRow, KERow, KMRow
from km_registry.types import JobState

#: Directories in which one document or KM has one of its own.
_OF_ONE = ("documents", "passages", "composites")


def orphans(store: Store) -> Iterator[Finding]:
    """Whatever lies in the registry's directories and belongs to nothing."""
    for path in of_nothing(store):
        yield Finding(
            str(path.relative_to(store.layout.root)),
            "it belongs to nothing that is recorded",
            "it will be removed",
            _removal(path),
        )


def of_nothing(store: Store) -> Iterator[Path]:
    """Paths in the registry's directories that belong to nothing."""
    # The files are listed before the rows are read: what is made in between has its row by then.
    present = [path for directory in _directories(store.layout) for path in _entries(directory)]
    with store.database.reading() as session:
        named = _named(session, store.layout)
    for path in present:
        if path not in named and named.isdisjoint(path.parents):
            yield path


def orphans_of(store: Store, document_ids: Collection[str]) -> Iterator[Callable[[], int]]:
    """What removes each of the files that belong to nothing and lie with one of these documents."""
    homes = {
        home(document_id)
        for document_id in document_ids
        for home in (store.layout.document_dir, store.layout.passages_dir)
    }
    for path in of_nothing(store):
        if path.parent in homes:
            yield _removal(path)


def _directories(layout: Layout) -> list[Path]:
    return [layout.documents, layout.kms, layout.work, layout.passages, layout.kes, layout.composites]


def _entries(directory: Path) -> Iterator[Path]:
    """What lies in a directory; of texts, passages and composites, what lies in each document's or KM's."""
    for path in sorted(directory.iterdir()):
        if directory.name in _OF_ONE and path.is_dir() and not path.is_symlink():
            yield from sorted(path.iterdir())
        else:
            yield path


def _named(session: Session, layout: Layout) -> set[Path]:
    """Every path that a row stands for; what is below one belongs to it."""
    kept = DocumentVersionRow.purged_at.is_(None)
    versions = session.execute(
        select(DocumentVersionRow.document_id, DocumentVersionRow.version, DocumentVersionRow.sha256).where(
            kept
        )
    ).all()
    named = {layout.text_file(document_id, version) for document_id, version, _ in versions}
    named |= {layout.passages_dir(document_id) / sha256 for document_id, _, sha256 in versions}
    # Of a deleted document everything is purged together; the server does so.
    deleted = session.scalars(select(DocumentRow.id).where(DocumentRow.deleted_at.is_not(None))).all()
    for document_id in deleted:
        named |= {layout.document_dir(document_id), layout.passages_dir(document_id)}
    kms = set(session.scalars(select(KMRow.id)))
    named |= {layout.km_dir(km_id) for km_id in kms}
    kes = session.execute(select(KERow.id, KERow.deleted_at).where(KERow.purged_at.is_(None))).all()
    named |= {layout.ke_dir(ke_id) for ke_id, _ in kes}
    named |= _composites(layout, kms | {ALONE}, {ke_id for ke_id, _ in kes})
    jobs = session.execute(select(JobRow.id, JobRow.km_id, JobRow.state, JobRow.document_id)).all()
    for job_id, km_id, state, document_id in jobs:
        unfinished = not JobState(state).finished
        if unfinished or state != JobState.SUCCEEDED or document_id in deleted:
            named.add(layout.work_dir(job_id))
        if km_id is not None and (unfinished or document_id in deleted):
            named.add(layout.km_dir(km_id))
    return named


def _composites(layout: Layout, kms: set[str], kes: set[str]) -> set[Path]:
    """The composites that are there of a KM and a KE that are."""
    found = layout.composites.glob("*/*")
    return {path for path in found if path.parent.name in kms and path.name.partition(".")[0] in kes}


def _removal(path: Path) -> Callable[[], int]:
    remove = purge_dir if path.is_dir() and not path.is_symlink() else purge_file
    return partial(remove, path)
