"""KMs that are exported and imported: by whom, whole, and what is refused."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from typer.testing import CliRunner, Result

from km_registry import artifacts
from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from server import cli
from server.client import KM
from server.config import ServerSettings
from tests.unit.server.conftest import TEXT, Someone, error_of, train

Files = dict[str, bytes]


async def exported(someone: Someone, document_id: str, *, text: bool = True) -> Files:
    answer = await someone.http.get(f"/documents/{document_id}/km", params={"text": str(text).lower()})
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _directory(path: Path) -> Files:
    return {file.name: file.read_bytes() for file in path.iterdir()}


async def imported(someone: Someone, files: Files, **fields: str) -> Response:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    sent = {"file": ("km.zip", written.getvalue())}
    return await someone.http.post("/documents/import", files=sent, data=fields)


@pytest.fixture
async def files(ada: Someone, registry: Registry) -> Files:
    """What another server gave: its document is not here any more."""
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    found = await exported(ada, document_id)
    await ada.http.delete(f"/documents/{document_id}")
    return found


async def test_an_export_is_the_km_as_it_is_kept(ada: Someone, registry: Registry, tmp_path: Path) -> None:
    document_id = await ada.upload()
    assert error_of(await ada.http.get(f"/documents/{document_id}/km"), 409)["code"] == "km_not_trained"
    km = train(registry, document_id, ada.principal)
    files = await exported(ada, document_id, text=False)
    assert files == _directory(Path(km.path))
    place = tmp_path / "exported"
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    assert artifacts.digest(artifacts.verify(place)) == km.digest
    assert (await exported(ada, document_id))["document.txt"].decode() == TEXT


async def test_only_owners_export_and_it_is_noted(ada: Someone, bob: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    await ada.http.post(f"/documents/{document_id}/grants", json={"user": "Bob"})
    error_of(await bob.http.get(f"/documents/{document_id}/km"), 404)
    await exported(ada, document_id)
    entries = (await ada.http.get("/audit", params={"target": document_id})).json()["entries"]
    told = [(one["action"], one["outcome"]) for one in entries if one["action"] == "document.export"]
    assert told == [("document.export", "done"), ("document.export", "refused")]


async def test_an_import_answers_without_a_training(
    bob: Someone, files: Files, registry: Registry, queue: MemoryJobQueue
) -> None:
    taken = (await imported(bob, files)).json()
    document_id = taken["document"]["id"]
    assert (taken["document"]["title"], taken["job"]["state"]) == ("Harbour", "succeeded")
    assert taken["km"]["metrics"] == {}
    assert queue.waiting() == []
    assert (await bob.ask(document_id, "km")).json()["km_id"] == taken["km"]["id"]
    again = await exported(bob, document_id)
    assert again["adapter_model.safetensors"] == files["adapter_model.safetensors"]
    manifest = json.loads(again["manifest.json"])
    assert manifest["document_id"] == document_id
    assert manifest["imported_from"] == json.loads(files["manifest.json"])["document_id"]
    error_of(await imported(bob, files), 409)


def _changed(files: Files, **fields: Any) -> Files:
    manifest = json.loads(files["manifest.json"]) | fields
    return files | {"manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda files: {name: files[name] for name in files if name != "document.txt"}, "--text"),
        (lambda files: files | {"document.txt": b"Another text."}, "another text"),
        (lambda files: files | {"document.txt": b"\xff"}, "not UTF-8"),
        (lambda files: files | {"../evil": b""}, "more than a KM"),
        (lambda files: files | {"adapter_model.safetensors": b"x"}, "bytes instead of"),
        (lambda files: _changed(files, base_fingerprint="0" * 64), "for the base model"),
        (lambda files: _changed(files, kind="ke"), "is no KM"),
        (lambda files: files | {"README.md": b"x" * 2_000_000}, "KM_MAX_IMPORT_BYTES"),
    ],
)
async def test_what_is_not_whole_is_refused_and_leaves_nothing(
    bob: Someone, files: Files, settings: ServerSettings, stored: Any, change: Any, says: str
) -> None:
    settings.max_import_bytes = 1_000_000
    before = sorted(path.name for path in settings.data_dir.iterdir())
    error = error_of(await imported(bob, change(files)), 422)
    assert (error["param"], says in error["message"]) == ("file", True), error["message"]
    assert stored(bob)[2] == 0
    assert sorted(path.name for path in settings.data_dir.iterdir()) == before


async def test_it_has_to_be_a_zip_in_a_form(bob: Someone) -> None:
    sent = {"file": ("km.zip", b"PK but no more")}
    error = error_of(await bob.http.post("/documents/import", files=sent), 422)
    assert "not a readable ZIP" in error["message"]
    error_of(await bob.http.post("/documents/import", data={"title": "t"}, files={"other": b"x"}), 422)
    error_of(await bob.http.post("/documents/import", json={}), 415)


async def test_the_client_writes_and_sends_directories(
    url: str, ada: Someone, bob: Someone, registry: Registry, tmp_path: Path
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)

    def work() -> str:
        with KM(url, ada.key) as mine, KM(url, bob.key) as other:
            directory = mine.export(document_id, tmp_path / "km", text=True)
            assert (directory / "adapter_config.json").exists()
            return other.import_km(directory, title="Mine")["document"]["title"]

    assert await asyncio.to_thread(work) == "Mine"


async def test_the_command_line_does_the_same(
    url: str, ada: Someone, bob: Someone, registry: Registry, tmp_path: Path
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    directory = str(tmp_path / "km")

    def km(key: str, *arguments: str) -> Result:
        return CliRunner().invoke(cli.app, arguments, env={"KM_URL": url, "KM_API_KEY": key})

    # What it prints is mixed here with what the server logs.
    written = await asyncio.to_thread(km, ada.key, "export", document_id, directory, "--text")
    assert written.exit_code == 0
    assert set(_directory(tmp_path / "km")) > {"adapter_config.json", "document.txt"}
    assert (await asyncio.to_thread(km, ada.key, "export", document_id, directory)).exit_code == 2
    taken = await asyncio.to_thread(km, bob.key, "import", directory, "--title", "Mine")
    assert (taken.exit_code, "Mine  succeeded" in taken.stdout) == (0, True)
    assert (await asyncio.to_thread(km, bob.key, "import", directory)).exit_code == 1
