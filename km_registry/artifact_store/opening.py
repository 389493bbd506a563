"""Which store of artifacts the settings mean."""

from __future__ import annotations

from km_registry.artifact_store.base import ArtifactStore
from km_registry.artifact_store.cache import Cache
from km_registry.artifact_store.local import DataDirectory
from km_registry.artifact_store.objects import Objects
from km_registry.artifact_store.shared import SharedStore
from km_registry.config import RegistrySettings
from km_registry.errors import ConflictError
from km_registry.store.layout import Layout


def open_artifacts(settings: RegistrySettings, layout: Layout) -> ArtifactStore:
    """The store of artifacts; nothing is reached yet.

    ConflictError when it is a shared one, and the data directory holds artifacts that never went there.
    """
    if settings.store_url is None:
        return DataDirectory()
    own = Layout(settings.data_dir)
    if any(any(directory.iterdir()) for directory in (own.documents, own.kms) if directory.is_dir()):
        raise ConflictError(
            f"{own.root} holds documents that are not in the store of KM_STORE_URL; back it up without "
            "KM_STORE_URL, and restore that with it into another data directory"
        )
    return SharedStore(Objects(settings.store_url), Cache(layout, int(settings.store_cache_gb * 2**30)))
