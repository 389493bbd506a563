"""KMs that leave for other programs and servers, and KMs that come from other servers."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from km_registry import artifacts
from km_registry.adapter_files import CONFIG, WEIGHTS, read_tensors
from km_registry.adapter_shapes import require_shapes
from km_registry.artifacts import MANIFEST
from km_registry.errors import ArtifactError, ConflictError
from km_registry.types import KM, Action, Document, Principal
from server.errors import InvalidRequestError, NotTrainedError
from server.recipes import complete_recipe
from server.state import AppState

#: The document's text, where it was asked for.
TEXT = "document.txt"
_CARD = "README.md"
_FILES = {WEIGHTS, CONFIG, MANIFEST, _CARD, TEXT}
_OWN = ("document_id", "document_version", "title", "format", "kind", "files")


async def packed(
    state: AppState, principal: Principal, document_id: str, *, with_text: bool
) -> tuple[KM, IO[bytes]]:
    """The document's KM, and its directory as a ZIP in a file without a name.

    NotFoundError, NotTrainedError; ConflictError when its text is not kept any more.
    """
    # A deletion waits for it, as for an answer.
    with state.in_flight.answering(document_id):
        return await run_in_threadpool(partial(_pack, state, principal, document_id, with_text=with_text))


def _pack(
    state: AppState, principal: Principal, document_id: str, *, with_text: bool
) -> tuple[KM, IO[bytes]]:
    document = state.registry.get_document(principal, document_id, Action.EXPORT)
    km = state.registry.km_of(document_id)
    if km is None:
        raise NotTrainedError(f"{document_id} has no KM to export. Wait for its training, or train it.")
    if with_text and km.version != document.version:
        raise ConflictError("the KM is of a former version, whose text is not kept; wait for the new KM")
    file = tempfile.TemporaryFile(dir=state.settings.data_dir)  # noqa: SIM115  whoever sends it closes it
    # Weights do not shrink.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with state.registry.held_km(km) as directory:
            for path in sorted(directory.iterdir()):
                archive.write(path, path.name)
        if with_text:
            archive.writestr(TEXT, state.registry.read_text(document_id, km.version))
    file.seek(0)
    return km, file


async def taken(state: AppState, principal: Principal, sent: IO[bytes], title: str | None) -> Document:
    """A new document of the principal's, with the KM that the ZIP holds, and without a training.

    InvalidRequestError says what is wrong with it; ConflictError when the principal has the document.
    """
    document = await run_in_threadpool(_take, state, principal, sent, title)
    state.retriever.begin(document.id)
    return document


def _take(state: AppState, principal: Principal, sent: IO[bytes], title: str | None) -> Document:
    with tempfile.TemporaryDirectory(dir=state.settings.data_dir) as directory:
        place = Path(directory) / "km"
        place.mkdir()
        try:
            text = _unpack(sent, place, state.settings.max_import_bytes)
            manifest = _checked(place, text, state)
        except ArtifactError as error:
            raise InvalidRequestError(f"file: {error}.", param="file") from error
        called = title or str(manifest.get("title") or "Imported")
        recipe = complete_recipe({"preset": "default"}, state.recipe_limits)
        document, job, created = state.registry.add_document(principal, called, text, recipe)
        if not created:
            raise ConflictError(f"you have this document already, as {document.id}; delete that, or train it")
        _publish(state, document, job.id, place, manifest)
    return document


def _unpack(sent: IO[bytes], place: Path, most: int) -> str:
    """Write the ZIP's files and return its text. ArtifactError when it is none of ours, or too large."""
    try:
        with zipfile.ZipFile(sent) as archive:
            infos = archive.infolist()
            if unknown := sorted({one.filename for one in infos} - _FILES) or len(infos) > len(_FILES):
                raise ArtifactError(f"it holds more than a KM ({unknown}); send what `km export` made")
            if sum(one.file_size for one in infos) > most:
                raise ArtifactError(f"it unpacks to more than {most} bytes; have KM_MAX_IMPORT_BYTES raised")
            if TEXT not in archive.namelist():
                raise ArtifactError("it lacks the document's text; export it with --text")
            for one in infos:
                # Never more than it says: the library stops there.
                (place / one.filename).write_bytes(archive.read(one))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ArtifactError(f"it is not a readable ZIP ({error}); send what `km export` made") from error
    file = place / TEXT
    data = file.read_bytes()
    file.unlink()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ArtifactError("its text is not UTF-8; export it anew") from error


def _checked(place: Path, text: str, state: AppState) -> dict[str, Any]:
    """The manifest of a KM that is whole, is of this text, and fits the base model that is served."""
    manifest = artifacts.verify(
        place, base_fingerprint=state.base_model.fingerprint, max_rank=state.settings.lora_rank
    )
    if hashlib.sha256(text.encode()).hexdigest() != manifest["document_sha256"]:
        raise ArtifactError("the KM was trained on another text than comes with it; export it anew")
    if (state.base_model.path / "config.json").exists():
        require_shapes(
            read_tensors(place / WEIGHTS, "export it anew"), state.base_model.path, manifest["rank"]
        )
    return manifest


def _publish(state: AppState, document: Document, job_id: str, place: Path, manifest: dict[str, Any]) -> None:
    """Do a worker's part: claim the job, stage the KM as this document's, publish it."""
    claimed = state.registry.claim(job_id)
    if claimed is None:
        raise ConflictError(f"a worker was faster and trains {document.id} anew; its KM will be there then")
    with suppress(RedisError):
        state.queue.stop(job_id)
    staged = state.registry.work_dir(job_id) / "imported"
    staged.mkdir()
    for name in manifest["files"]:
        (place / name).rename(staged / name)
    fields = {name: value for name, value in manifest.items() if name not in _OWN}
    own = {"document_id": document.id, "document_version": document.version, "title": document.title}
    artifacts.write_manifest(staged, {**fields, **own, "imported_from": manifest["document_id"]})
    metrics = manifest.get("metrics")
    state.registry.publish(job_id, claimed.attempt, staged, metrics if isinstance(metrics, dict) else {})
