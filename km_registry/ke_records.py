"""The KEs that are registered: taken in only when they fit, each under an id that is never given again.

A KE's files are copied into the data directory, so that they stay what they were. Its row outlives them, so
that a version's number means one KE for ever.
"""

from __future__ import annotations

import re
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from km_registry import artifacts
from km_registry.base_model import BaseModel
from km_registry.composites import forget_ke
from km_registry.errors import (
    ArtifactError,
    ConflictError,
    InvalidKEError,
    NotFoundError,
    StoreUnavailableError,
)
from km_registry.files import fsync
from km_registry.ids import new_id
from km_registry.store import holding
from km_registry.store.store import Store, now
from km_registry.tables import KERow
from km_registry.types import KE

#: What a request may say instead of a KE's name.
RESERVED = ("none", "default")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class KERecords:
    """The KEs of one registry. Synchronous and thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def composites(self) -> Path:
        """The directory of the composites that are made of KEs, with KMs or alone."""
        return self._store.layout.composites

    def register(
        self, directory: Path, base_model: BaseModel, *, make_default: bool = False
    ) -> tuple[KE, bool]:
        """Take in the KE in a directory: the KE, and whether it is new. The directory is not needed later.

        A KE of the same name gets the next version. InvalidKEError when it is not whole, or is for another
        base model, or its rank is above the setting `ke_rank`.
        """
        manifest = self._verified(directory, base_model)
        existing = self._of_digest(artifacts.digest(manifest))
        if existing is None:
            ke, new = self._take(directory, manifest), True
        else:
            ke, new = existing, False
        if make_default and not ke.is_default:
            ke = self.set_default(ke.id)
        return ke, new

    def held(self, ke: KE) -> AbstractContextManager[Path]:
        """The KE's directory, here for as long as the block runs. ArtifactError, StoreUnavailableError."""
        return holding.adapter(self._store.artifacts, self._store.layout, ke)

    def all(self) -> list[KE]:
        """Every KE that can be asked for, by name and version, newest version first."""
        query = select(KERow).where(KERow.deleted_at.is_(None)).order_by(KERow.name, KERow.version.desc())
        with self._store.database.reading() as session:
            return [self._as_ke(row) for row in session.scalars(query)]

    def find(self, asked: str, *, base_fingerprint: str | None = None) -> KE | None:
        """The KE of this id, or the newest version of this name; only one for the base model, if given."""
        named = (KERow.id == asked) | (KERow.name == asked)
        query = select(KERow).where(named, KERow.deleted_at.is_(None)).order_by(KERow.version.desc())
        if base_fingerprint is not None:
            query = query.where(KERow.base_fingerprint == base_fingerprint)
        with self._store.database.reading() as session:
            row = session.scalars(query.limit(1)).one_or_none()
            return None if row is None else self._as_ke(row)

    def default_for(self, base_fingerprint: str) -> KE | None:
        """The KE that is the default for this base model."""
        with self._store.database.reading() as session:
            row = session.scalars(select(KERow).where(KERow.default_for == base_fingerprint)).one_or_none()
            return None if row is None else self._as_ke(row)

    def had(self, digest: str) -> bool:
        """Whether a KE of this content was ever registered, deleted or not."""
        with self._store.database.reading() as session:
            return session.scalar(select(KERow.id).where(KERow.digest == digest).limit(1)) is not None

    def set_default(self, ke_id: str) -> KE:
        """Make it the default for its base model. NotFoundError if there is none of this id."""
        with self._store.transaction() as transaction:
            session = transaction.session
            row = _live(session, ke_id)
            session.execute(
                update(KERow).where(KERow.default_for == row.base_fingerprint).values(default_for=None)
            )
            session.flush()
            row.default_for = row.base_fingerprint
            return self._as_ke(row)

    def tombstone(self, ke_id: str) -> KE:
        """From here on nobody finds it; its files stay until it is purged. NotFoundError if there is none."""
        with self._store.transaction() as transaction:
            row = _live(transaction.session, ke_id)
            row.deleted_at, row.default_for = now(), None
            return self._as_ke(row)

    def pending(self) -> list[KE]:
        """KEs that are tombstoned and not purged yet."""
        query = select(KERow).where(KERow.deleted_at.is_not(None), KERow.purged_at.is_(None))
        with self._store.database.reading() as session:
            return [self._as_ke(row) for row in session.scalars(query)]

    def purge(self, ke_id: str) -> dict[str, int]:
        """Remove the files of a tombstoned KE and its composites; counts and bytes. Idempotent.

        No engine and no answer may be using them any more.
        """
        composites, composite_bytes = forget_ke(self._store.layout.composites, ke_id)
        removed = {
            "adapter_bytes": self._store.artifacts.remove(self._store.layout.ke(ke_id)),
            "composites": composites,
            "composite_bytes": composite_bytes,
        }
        with self._store.transaction() as transaction:
            transaction.session.execute(update(KERow).where(KERow.id == ke_id).values(purged_at=now()))
        return removed

    # --- taking in -------------------------------------------------------------------------------------

    def _verified(self, directory: Path, base_model: BaseModel) -> dict[str, Any]:
        try:
            if not directory.is_dir():
                raise InvalidKEError(f"{directory} is no directory on the server. Name one that holds a KE.")
            manifest = artifacts.verify_ke(
                directory,
                base_fingerprint=base_model.fingerprint,
                max_rank=self._store.settings.ke_rank,
            )
        except ArtifactError as error:
            raise InvalidKEError(f"This KE cannot be taken: {error}.") from error
        except OSError as error:
            raise InvalidKEError(
                f"{directory} cannot be read ({error.strerror}). Correct its owner and mode."
            ) from error
        name = manifest["name"]
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED:
            raise InvalidKEError(
                f"A KE cannot be called {name!r}. Give it a name of 1 to 64 characters a-z, 0-9, '.', '_' or "
                f"'-' that is not {' or '.join(RESERVED)}."
            )
        return manifest

    def _take(self, directory: Path, manifest: dict[str, Any]) -> KE:
        """Copy the files into place and record them, all or nothing."""
        try:
            return self._copied(new_id("ke"), directory, manifest)
        except ArtifactError as error:
            raise InvalidKEError(f"This KE was changed while it was copied: {error}.") from error
        except IntegrityError as error:
            raise ConflictError("a KE of this name came at the same moment; try again") from error

    def _copied(self, ke_id: str, directory: Path, manifest: dict[str, Any]) -> KE:
        layout = self._store.layout
        staged = layout.kes / f".{ke_id}"
        try:
            staged.mkdir(mode=0o700)
            for name in (*manifest["files"], artifacts.MANIFEST):
                shutil.copyfile(directory / name, staged / name)
                fsync(staged / name)
            # What was verified there may have been changed since; what is here is ours.
            copied = artifacts.verify_ke(staged, base_fingerprint=manifest["base_fingerprint"])
            self._store.artifacts.publish(layout.ke(ke_id), staged)
            with self._store.transaction() as transaction:
                row = _insert(transaction.session, ke_id, copied)
                artifacts.move_into_place(staged, layout.ke_dir(ke_id))
                return self._as_ke(row)
        except BaseException:
            artifacts.purge_dir(staged)
            # An id that was never given: what a store that is away keeps under it km doctor finds.
            with suppress(StoreUnavailableError):
                self._store.artifacts.remove(layout.ke(ke_id))
            raise

    def _of_digest(self, digest: str) -> KE | None:
        query = select(KERow).where(KERow.digest == digest, KERow.deleted_at.is_(None)).limit(1)
        with self._store.database.reading() as session:
            row = session.scalars(query).one_or_none()
            return None if row is None else self._as_ke(row)

    def _as_ke(self, row: KERow) -> KE:
        return KE(
            id=row.id,
            name=row.name,
            version=row.version,
            digest=row.digest,
            path=str(self._store.layout.ke_dir(row.id)),
            base_model=row.base_model,
            base_fingerprint=row.base_fingerprint,
            rank=row.rank,
            prompt_format=row.prompt_format,
            trained=row.trained,
            is_default=row.default_for is not None,
            created_at=row.created_at,
            metrics=row.metrics,
        )


def _live(session: Session, ke_id: str) -> KERow:
    query = select(KERow).where(KERow.id == ke_id, KERow.deleted_at.is_(None)).with_for_update()
    row = session.scalars(query).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no KE {ke_id}; GET /kes lists those that there are")
    return row


def _insert(session: Session, ke_id: str, manifest: dict[str, Any]) -> KERow:
    newest = session.scalar(select(func.max(KERow.version)).where(KERow.name == manifest["name"]))
    row = KERow(
        id=ke_id,
        name=manifest["name"],
        version=(newest or 0) + 1,
        digest=artifacts.digest(manifest),
        base_model=str(manifest["base_model"]),
        base_fingerprint=manifest["base_fingerprint"],
        rank=manifest["rank"],
        prompt_format=str(manifest["prompt_format"]),
        trained=str(manifest["trained"]),
        metrics=manifest["metrics"],
        created_at=now(),
    )
    session.add(row)
    session.flush()
    return row
