"""Where files lie. Only ids that the registry made itself become parts of paths."""

from __future__ import annotations

from pathlib import Path


class Layout:
    """The directories under the data directory, readable by this user only."""

    def __init__(self, data_dir: Path) -> None:
        self.root = data_dir.expanduser().resolve()
        self.documents = self.root / "documents"
        self.kms = self.root / "kms"
        self.work = self.root / "work"
        self.passages = self.root / "passages"
        self.kes = self.root / "kes"
        self.composites = self.root / "composites"

    def create(self) -> None:
        """Make what is not there."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
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

    def work_dir(self, job_id: str) -> Path:
        """What the job's attempts write on the way."""
        return self.work / job_id
