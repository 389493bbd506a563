"""`km doctor`, `km backup`, `km restore`: what they print, and how they end."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from km_registry.config import RegistrySettings
from km_registry.registry import Registry
from km_registry.types import KM, Principal
from server import cli
from server import doctor as doctors
from server.startup import data_directory
from tests.contract.support import publish


@pytest.fixture
def settings(tmp_path: Path) -> RegistrySettings:
    return RegistrySettings(data_dir=tmp_path / "data", database_url=None)


@pytest.fixture
def km(registry: Registry, owner: Principal) -> KM:
    document, job, _ = registry.add_document(owner, "Kaldvik", "The lighthouse was lit in 1871.")
    return publish(registry, document, job)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_all_is_well(settings: RegistrySettings, km: KM) -> None:
    done = run("doctor", "--data-dir", settings.data_dir)
    assert (done.exit_code, done.output) == (0, "All is well.\n")


def test_what_is_wrong_is_said_and_mended(settings: RegistrySettings, km: KM) -> None:
    (Path(km.path) / "README.md").write_text("altered")
    told = run("doctor", "--data-dir", settings.data_dir)
    assert told.exit_code == 1
    assert f"{km.id}: README.md" in told.stdout
    assert "km doctor --repair" in told.stderr
    mended = run("doctor", "--repair", "--data-dir", settings.data_dir)
    assert mended.exit_code == 0
    assert "mended" in mended.stdout
    assert run("doctor", "--data-dir", settings.data_dir).exit_code == 0


def test_what_cannot_be_mended_ends_with_one(settings: RegistrySettings, km: KM) -> None:
    next(settings.data_dir.glob("documents/*/text.txt")).unlink()
    done = run("doctor", "--repair", "--data-dir", settings.data_dir)
    assert done.exit_code == 1
    assert "upload it again" in done.stdout


def test_nothing_is_mended_beside_a_server(
    settings: RegistrySettings, km: KM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctors, "_PASSING_S", 0)
    (settings.data_dir / "kms" / "stray").write_text("x")
    with data_directory(settings.data_dir):
        refused = run("doctor", "--repair", "--data-dir", settings.data_dir)
        assert "in use" in refused.stderr
        assert run("doctor", "--data-dir", settings.data_dir).exit_code == 1
    assert (settings.data_dir / "kms" / "stray").exists()


@pytest.mark.parametrize("damage", ["altered", "lost", "manifest"])
def test_a_damaged_index_of_passages_is_removed(
    settings: RegistrySettings, registry: Registry, km: KM, damage: str
) -> None:
    directory = registry.passages_dir(km.document_id) / registry.versions_of(km.document_id)[0].sha256
    directory.mkdir(parents=True)
    (directory / "index.faiss").write_bytes(b"vectors")
    (directory / "manifest.json").write_text(
        "{" if damage == "manifest" else '{"files": {"index.faiss": "0"}}'
    )
    if damage == "lost":
        (directory / "index.faiss").unlink()
    assert run("doctor", "--repair", "--data-dir", settings.data_dir).exit_code == 0
    assert not directory.exists()


def test_a_backup_is_made_and_put_back(settings: RegistrySettings, km: KM, tmp_path: Path) -> None:
    made = run("backup", tmp_path / "copy", "--data-dir", settings.data_dir)
    assert made.exit_code == 0
    assert "1 documents  1 KMs" in made.output
    again = run("backup", tmp_path / "copy", "--data-dir", settings.data_dir)
    assert (again.exit_code, "exists" in again.stderr) == (1, True)
    back = run("restore", tmp_path / "copy", "--data-dir", tmp_path / "new")
    assert back.exit_code == 0, back.stderr
    assert run("doctor", "--data-dir", tmp_path / "new").exit_code == 0
    over = run("restore", tmp_path / "copy", "--data-dir", settings.data_dir)
    assert (over.exit_code, "nothing is overwritten" in over.stderr) == (1, True)


def test_there_has_to_be_a_data_directory(tmp_path: Path) -> None:
    for command in (("doctor",), ("backup", tmp_path / "copy")):
        done = run(*command, "--data-dir", tmp_path / "none")
        assert (done.exit_code, "no data directory" in done.stderr) == (2, True)
        assert not (tmp_path / "none").exists()
