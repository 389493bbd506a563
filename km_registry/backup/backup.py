"""Taking a backup: records of one moment, then every file that they name, verified as it is copied.

A backup is a data directory with a manifest, so whatever examines one examines the other.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import select

from km_registry.artifact_store.base import Artifact, ArtifactStore
from km_registry.artifact_store.opening import open_artifacts
from km_registry.artifacts import atomic_write, move_into_place, purge_dir, purge_file, verify, verify_ke
from km_registry.artifacts import digest as content_digest
from km_registry.backup.manifest import RECORDS, Backup, seal
from km_registry.backup.rows import closing_database, snapshot
from km_registry.config import RegistrySettings
from km_registry.errors import ArtifactError, ConflictError
from km_registry.events import NullNotifier
from km_registry.store import deletion
from km_registry.store.database import Database
from km_registry.store.layout import Layout
from km_registry.store.store import Store
from km_registry.tables import DocumentRow, DocumentVersionRow, KERow, KMRow

#: What is deleted while it is copied makes the records out of date; they are read again then.
_ROUNDS = 20
_PAUSE_S = 0.1


def back_up(settings: RegistrySettings, target: Path) -> Backup:
    """Write everything that cannot be made anew into the new directory `target`.

    May run beside a server and its workers. Holds no passages and no composites, which are made anew when
    they are needed, and nothing of a document that was deleted before the backup ends.

    Raises:
        ConflictError: `target` exists.
        ArtifactError: a file is missing or damaged; `km doctor` says which are.
        StoreUnavailableError: the shared store is away.
    """
    if target.exists():
        raise ConflictError(f"{target} exists; name a directory that does not")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    purge_dir(partial)
    partial.mkdir(mode=0o700)
    try:
        _fill(settings, partial)
        _forget_deleted(settings, partial)
        backup = seal(partial)
        move_into_place(partial, target)
    except BaseException:
        purge_dir(partial)
        raise
    return replace(backup, path=target)


def _fill(settings: RegistrySettings, partial: Path) -> None:
    source, into = Layout.of(settings), Layout(partial)
    artifacts = open_artifacts(settings, source)
    into.create()
    records = partial / RECORDS
    with closing(Database(settings.effective_database_url)) as database:
        for left in reversed(range(_ROUNDS)):
            snapshot(database, records)
            try:
                named = _copy(artifacts, source, into, records)
            except ArtifactError:
                # Deleted since, most likely: then the next records do not name it any more.
                if not left:
                    raise
                time.sleep(_PAUSE_S)
            else:
                _leave_out_all_but(named, into)
                return


def _copy(artifacts: ArtifactStore, source: Layout, into: Layout, records: Path) -> set[Path]:
    """Copy every file that the records name and that is not copied yet; the paths of all. ArtifactError."""
    live = DocumentRow.deleted_at.is_(None)
    texts = (
        select(DocumentVersionRow.document_id, DocumentVersionRow.version, DocumentVersionRow.sha256)
        .join(DocumentRow, DocumentRow.id == DocumentVersionRow.document_id)
        .where(live, DocumentVersionRow.purged_at.is_(None))
    )
    kms = (
        select(KMRow.document_id, KMRow.id, KMRow.digest)
        .join(DocumentRow, DocumentRow.id == KMRow.document_id)
        .where(live)
    )
    with closing_database(records) as database, database.reading() as session:
        named_texts, named_kms = session.execute(texts).all(), session.execute(kms).all()
        named_kes = session.execute(select(KERow.id, KERow.digest).where(KERow.deleted_at.is_(None))).all()
    copied = set()
    for document_id, version, sha256 in named_texts:
        file = into.text_file(document_id, version)
        _copy_text(artifacts, source.text(document_id, version), file, sha256)
        copied.add(file)
    for document_id, km_id, digest in named_kms:
        _copy_adapter(artifacts, source.km(document_id, km_id), into.km_dir(km_id), digest, verify)
        copied.add(into.km_dir(km_id))
    for ke_id, digest in named_kes:
        _copy_adapter(artifacts, source.ke(ke_id), into.ke_dir(ke_id), digest, verify_ke)
        copied.add(into.ke_dir(ke_id))
    return copied


def _copy_text(artifacts: ArtifactStore, source: Artifact, file: Path, sha256: str) -> None:
    if file.exists() and _sha256(file.read_bytes()) == sha256:
        return
    try:
        data = artifacts.read(source, sha256)
    except FileNotFoundError:
        raise ArtifactError(f"{source.path} is missing; look with km doctor") from None
    except ArtifactError:
        raise ArtifactError(f"{source.path} was altered; look with km doctor") from None
    atomic_write(file, data)


def _copy_adapter(
    artifacts: ArtifactStore,
    source: Artifact,
    directory: Path,
    digest: str,
    verified: Callable[[Path], dict[str, Any]],
) -> None:
    if directory.exists():  # whole: it was named so only once it had been verified
        return
    partial = directory.with_name(f".{directory.name}")
    purge_dir(partial)
    try:
        artifacts.copy(source, partial)
        if content_digest(verified(partial)) != digest:
            raise ArtifactError(f"{source.path} is not what was recorded; look with km doctor")
    except (FileNotFoundError, shutil.Error) as error:
        raise ArtifactError(f"{source.path} is missing; look with km doctor") from error
    move_into_place(partial, directory)


def _leave_out_all_but(named: set[Path], into: Layout) -> None:
    """Remove what earlier records named and the last ones do not."""
    for path in [*into.documents.glob("*/*"), *into.kms.iterdir(), *into.kes.iterdir()]:
        if path in named:
            continue
        if path.is_dir():
            purge_dir(path)
        else:
            purge_file(path)
    for directory in into.documents.iterdir():
        if not any(directory.iterdir()):
            directory.rmdir()


def _forget_deleted(settings: RegistrySettings, partial: Path) -> None:
    """Complete in the copy every deletion that was asked for: nothing of those documents is kept in it."""
    copy = settings.model_copy(update={"data_dir": partial, "database_url": None, "store_url": None})
    store = Store.open(copy, NullNotifier())
    try:
        for document in deletion.pending(store):
            deletion.complete(store, document.id, deletion.purge(store, document.id))
    finally:
        store.database.close()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
