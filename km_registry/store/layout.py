"""Where files lie. Only ids that the registry made itself become parts of paths."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from km_registry.artifact_store.base import Artifact
from km_registry.config import RegistrySettings

#: The first parts of keys in a shared store.
DOCUMENTS, KES = "documents", "kes"


class Layout:
    """The directories under the data directory, readable by this user only.

    With `shared`, artifacts are kept in a store that machines share, and lie here in a directory of copies.
    """

    def __init__(self, data_dir: Path, *, shared: bool = False) -> None:
        self.root = data_dir.expanduser().resolve()
        #: Where artifacts lie.
        self.artifacts = self.root / "cache" if shared else self.root
        self.documents = self.artifacts / "documents"
        self.kms = self.artifacts / "kms"
        self.work = self.root / "work"
        self.passages = self.artifacts / "passages"
        self.kes = self.artifacts / "kes"
        self.composites = self.root / "composites"

    @classmethod
    def of(cls, settings: RegistrySettings) -> Self:
        """The layout by these settings."""
        return cls(settings.data_dir, shared=settings.store_url is not None)

    def create(self) -> None:
        """Make what is not there."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.artifacts.mkdir(mode=0o700, exist_ok=True)
        for directory in (self.documents, self.kms, self.work, self.passages, self.kes, self.composites):
            directory.mkdir(mode=0o700, exist_ok=True)

    def document_dir(self, document_id: str) -> Path:
        """The document's directory."""
        return self.documents / document_id

    def upload_mark(self, document_id: str) -> Path:
        """Lies beside the text of an upload until its row is committed."""
        return self.document_dir(document_id) / ".uncommitted"

    def text_file(self, document_id: str, version: int = 1) -> Path:
        """The text of a version of the document."""
        return self.document_dir(document_id) / ("text.txt" if version == 1 else f"text-{version}.txt")

    def km_dir(self, km_id: str) -> Path:
        """The KM's PEFT directory."""
        return self.kms / km_id

    def ke_dir(self, ke_id: str) -> Path:
        """The KE's directory."""
        return self.kes / ke_id

    def passages_dir(self, document_id: str) -> Path:
        """The vectors of the document's passages."""
        return self.passages / document_id

    def text(self, document_id: str, version: int = 1) -> Artifact:
        """The text of a version of the document."""
        path = self.text_file(document_id, version)
        return Artifact(path, f"{document_key(document_id)}/{path.name}")

    def km(self, document_id: str, km_id: str) -> Artifact:
        """A KM of the document."""
        return Artifact(self.km_dir(km_id), f"{document_key(document_id)}/kms/{km_id}")

    def passages_of(self, document_id: str, text_sha256: str) -> Artifact:
        """The index of the passages of the document's version that has this text."""
        path = self.passages_dir(document_id) / text_sha256
        return Artifact(path, f"{document_key(document_id)}/passages/{text_sha256}")

    def ke(self, ke_id: str) -> Artifact:
        """The KE."""
        return Artifact(self.ke_dir(ke_id), f"{KES}/{ke_id}")

    def work_dir(self, job_id: str) -> Path:
        """What the job's attempts write on the way."""
        return self.work / job_id


def document_key(document_id: str) -> str:
    """What the keys of all that a shared store has of the document begin with."""
    return f"{DOCUMENTS}/{document_id}"


def handover_key(document_id: str, job_id: str) -> str:
    """What the keys of all begin with that the job's attempts have left for those after them."""
    return f"{document_key(document_id)}/work/{job_id}"
