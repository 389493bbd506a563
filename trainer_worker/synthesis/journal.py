"""What has been written so far, in a file, so that a run that was killed goes on from there.

One line for each finished group of chunks, with a checksum; a line that a kill tore is found by it, and it
and what follows is written anew. The first line tells what the file is for: another recipe's is not taken up.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from km_registry.recipe import Kind
from trainer_worker.examples import Sample

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """The samples of one kind about the group of chunks that begins at `first`, and what the filters did."""

    kind: Kind
    first: int
    samples: list[Sample]
    written: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)


class Journal:
    """Records of one run. Without a path they are kept in memory alone. Within `writing` the file may be
    written."""

    def __init__(
        self,
        path: Path | None,
        purpose: Mapping[str, Any],
        writing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._path = path
        self._writing = writing
        self._records: dict[tuple[str, int], Record] = {}
        if path is None:
            return
        head = _line(dict(purpose))
        good = self._load(path, head) if path.exists() else 0
        if not good and path.exists():
            _log.warning("synthetic text of another recipe or text is ignored")
        with writing():
            if not good:
                path.write_bytes(head)
                return
            # What is torn must not stand before what is written now.
            with path.open("r+b") as file:
                file.truncate(good)

    def get(self, kind: str, first: int) -> Record | None:
        """The record, when there is one."""
        return self._records.get((kind, first))

    def add(self, record: Record) -> None:
        """Keep a record; it outlives this process from now on."""
        self._records[record.kind, record.first] = record
        if self._path is None:
            return
        # Never made again: where it is gone the job's directory was purged, and the job with it.
        with self._writing(), self._path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(_line(asdict(record)))

    def _load(self, path: Path, head: bytes) -> int:
        """Takes up what is whole; bytes up to the end of it, 0 when the file is for something else."""
        good = 0
        with path.open("rb") as file:
            for line in file:
                fields = _read(line)
                if fields is None or (good == 0 and line != head):
                    break
                if good:
                    samples = [Sample(**sample) for sample in fields.pop("samples")]
                    record = Record(samples=samples, **fields)
                    self._records[record.kind, record.first] = record
                good += len(line)
        return good


def _line(fields: Mapping[str, Any]) -> bytes:
    content = json.dumps(fields, ensure_ascii=False, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16].encode() + b" " + content + b"\n"


def _read(line: bytes) -> dict[str, Any] | None:
    """What a line says; nothing when it is not whole."""
    checksum, _, content = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or hashlib.sha256(content).hexdigest()[:16].encode() != checksum:
        return None
    fields: dict[str, Any] = json.loads(content)
    return fields
