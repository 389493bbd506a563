"""What a process that was killed left behind: half an upload, a version never recorded, half a KE."""

from __future__ import annotations

from sqlalchemy import select

from km_registry.artifact_store.cache import clear_unfinished
from km_registry.artifacts import purge_dir, purge_file
from km_registry.doctor.orphans import orphans_of
from km_registry.errors import StoreUnavailableError
from km_registry.store.layout import document_key
from km_registry.store.store import Store
from km_registry.tables import DocumentRow


def recover(store: Store) -> int:
    """Remove the directories of uploads that were cut short, and what lies in a document's directories and
    belongs to nothing, and half copied KEs; how many.

    Directories of documents that the database does not know and that bear no mark stay: it may be the wrong
    database. Nobody may be uploading.
    """
    with store.database.reading() as session:
        known = set(session.scalars(select(DocumentRow.id)))
    removed = 0
    for directory in list(store.layout.documents.iterdir()):
        mark = store.layout.upload_mark(directory.name)
        if not mark.exists():
            continue
        if directory.name in known:
            purge_file(mark)
        else:
            try:
                store.artifacts.forget(document_key(directory.name))
            except StoreUnavailableError:
                continue  # the mark stays for the next start
            purge_dir(directory)
            removed += 1
    if store.artifacts.is_shared:
        clear_unfinished(store.layout)
    # A KE that was being copied.
    for staged in list(store.layout.kes.glob(".*")):
        purge_dir(staged)
        removed += 1
    for orphan in orphans_of(store, known):
        orphan()
        removed += 1
    return removed
