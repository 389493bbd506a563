"""Putting a backup back, into a data directory and a database that hold nothing."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

from sqlalchemy import select, update

from km_registry.artifact_store.base import ArtifactStore
from km_registry.artifact_store.opening import open_artifacts
from km_registry.artifacts import move_into_place, purge_dir
from km_registry.backup import manifest
from km_registry.backup.manifest import RECORDS, Backup
from km_registry.backup.rows import copy_rows, is_empty
from km_registry.config import RegistrySettings
from km_registry.errors import ConflictError
from km_registry.events import NullNotifier
from km_registry.store.database import Database
from km_registry.store.installation import renew
from km_registry.store.layout import Layout
from km_registry.store.store import Store
from km_registry.tables import DocumentVersionRow, JobRow, KERow, KMRow
from km_registry.types import JobState

#: In the data directory until everything is in place: a restore that was cut short can be done again.
_STAGE = ".restore"


def restore(settings: RegistrySettings, source: Path) -> Backup:
    """Put the backup in the directory `source` back. No server may use the data directory.

    The records may have been in another kind of database. What trained when the backup was made is queued.

    Raises:
        ConflictError: there are documents or records already; nothing is overwritten.
        ArtifactError: the backup is damaged; nothing was changed.
        StoreUnavailableError: the shared store is away; restore again when it is there.
    """
    backup = manifest.read(source)
    layout = Layout.of(settings)
    layout.create()
    stage = layout.root / _STAGE
    _refuse_unless_empty(settings, layout, resumed=stage.exists())
    purge_dir(stage)
    for name in backup.files:
        (stage / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(source / name, stage / name)
    _put_in_place(settings, layout, stage)
    purge_dir(stage)
    return backup


def _refuse_unless_empty(settings: RegistrySettings, layout: Layout, *, resumed: bool) -> None:
    if settings.database_url is None:
        full = (layout.root / RECORDS).exists()
    else:
        with closing(Database(settings.database_url)) as database:
            database.migrate()
            full = not is_empty(database)
    if full:
        raise ConflictError("the database holds records already; name an empty one, nothing is overwritten")
    for directory in (layout.documents, layout.kms, layout.kes):
        if resumed:
            # Moved there by a restore that was cut short before its records were.
            purge_dir(directory)
            directory.mkdir(mode=0o700)
        elif any(directory.iterdir()):
            raise ConflictError(f"{directory} holds files already; name another data directory")


def _put_in_place(settings: RegistrySettings, layout: Layout, stage: Path) -> None:
    here = {"data_dir": stage, "database_url": None, "store_url": None}
    staged = Store.open(settings.model_copy(update=here), NullNotifier())
    with closing(staged.database):
        _queue_what_ran(staged)
        artifacts = open_artifacts(settings, layout)
        _share(staged, artifacts, layout)
        for directory in (layout.documents, layout.kms, layout.kes):
            directory.rmdir()
            move_into_place(stage / directory.name, directory)
        # The records last: with them everything is there.
        if settings.database_url is not None:
            with closing(Database(settings.database_url)) as database:
                copy_rows(staged.database, database)
                renew(database, artifacts)
            return
        renew(staged.database, artifacts)
    move_into_place(stage / RECORDS, layout.root / RECORDS)


def _share(staged: Store, artifacts: ArtifactStore, layout: Layout) -> None:
    """Have a shared store keep every artifact that the records name, before they name it."""
    if not artifacts.is_shared:
        return
    with staged.database.reading() as session:
        texts = session.execute(
            select(DocumentVersionRow.document_id, DocumentVersionRow.version).where(
                DocumentVersionRow.purged_at.is_(None)
            )
        ).all()
        kms = session.execute(select(KMRow.document_id, KMRow.id)).all()
        kes = session.scalars(select(KERow.id).where(KERow.deleted_at.is_(None))).all()
    for document_id, version in texts:
        text = staged.layout.text_file(document_id, version).read_bytes()
        artifacts.write(layout.text(document_id, version), text)
    for document_id, km_id in kms:
        artifacts.publish(layout.km(document_id, km_id), staged.layout.km_dir(km_id))
    for ke_id in kes:
        artifacts.publish(layout.ke(ke_id), staged.layout.ke_dir(ke_id))
    # What was written here is moved here in a moment.
    purge_dir(layout.documents)
    layout.documents.mkdir(mode=0o700)


def _queue_what_ran(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.session.execute(
            update(JobRow).where(JobRow.state == JobState.RUNNING).values(state=JobState.QUEUED)
        )
        transaction.session.execute(update(JobRow).values(held_by=None))
