"""Artifacts that somebody uses: had from a shared store if need be, and here for as long as they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from km_registry.artifact_store.base import Artifact, ArtifactStore, Check
from km_registry.artifacts import digest, verify, verify_ke
from km_registry.errors import ArtifactError, NotFoundError
from km_registry.store.layout import Layout
from km_registry.store.rows import live_document
from km_registry.store.store import Store
from km_registry.types import KE, KM


def adapter(artifacts: ArtifactStore, layout: Layout, one: KM | KE) -> AbstractContextManager[Path]:
    """The directory of a KM or a KE, for as long as the block runs. ArtifactError, StoreUnavailableError."""
    verified = verify if isinstance(one, KM) else verify_ke
    return _adapter(artifacts, artifact_of(layout, one), one, verified)


def artifact_of(layout: Layout, one: KM | KE) -> Artifact:
    """Where a KM or a KE lies."""
    return layout.km(one.document_id, one.id) if isinstance(one, KM) else layout.ke(one.id)


def passages(store: Store, document_id: str, text_sha256: str, check: Check) -> AbstractContextManager[Path]:
    """The directory of an index, for as long as the block runs. FileNotFoundError when there is none."""
    return store.artifacts.held(store.layout.passages_of(document_id, text_sha256), check)


def share_passages(store: Store, document_id: str, text_sha256: str) -> None:
    """Publish the index that lies here; taken back when the document was deleted meanwhile."""
    if not store.artifacts.is_shared:
        return
    artifact = store.layout.passages_of(document_id, text_sha256)
    store.artifacts.publish(artifact, artifact.path)
    # A deletion on another machine either finds it, or had its tombstone before this look.
    try:
        with store.database.reading() as session:
            live_document(session, document_id)
    except NotFoundError:
        store.artifacts.remove(artifact)
        raise


@contextmanager
def _adapter(
    artifacts: ArtifactStore, artifact: Artifact, one: KM | KE, verified: Callable[..., dict[str, Any]]
) -> Iterator[Path]:
    def check(directory: Path) -> None:
        manifest = verified(directory, base_fingerprint=one.base_fingerprint, tensors=False)
        if digest(manifest) != one.digest:
            raise ArtifactError(f"{one.id} is not what was recorded: its digest is another")

    with ExitStack() as stack:
        try:
            path = stack.enter_context(artifacts.held(artifact, check))
        except FileNotFoundError:
            raise ArtifactError(f"the files of {one.id} are missing; look with km doctor") from None
        yield path
