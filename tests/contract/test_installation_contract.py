"""Databases, data directories and stores of two installations are told apart."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from km_registry.backup.backup import back_up
from km_registry.backup.restore import restore
from km_registry.config import RegistrySettings
from km_registry.errors import InstallationError, StoreUnavailableError
from km_registry.events import NullNotifier
from km_registry.fleet_types import Gateway
from km_registry.registry import Registry
from km_registry.tables import GatewayRow
from km_registry.types import Principal
from tests.contract.support import FIRST

on_both = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path, migrated: Path) -> Iterator[str]:
    """A database that several machines reach."""
    if getattr(request, "param", "sqlite") == "sqlite":
        shutil.copy(migrated, tmp_path / "records.sqlite3")
        yield f"sqlite:///{tmp_path / 'records.sqlite3'}"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


@pytest.fixture
def machine(tmp_path: Path, database_url: str) -> Callable[..., RegistrySettings]:
    """Settings of a machine with a data directory of its own."""

    def of(name: str, **more: str | None) -> RegistrySettings:
        return RegistrySettings(data_dir=tmp_path / name, **({"database_url": database_url} | more))  # type: ignore[arg-type]

    return of


@pytest.fixture
def settings(machine: Callable[..., RegistrySettings]) -> RegistrySettings:
    return machine("first")


@pytest.fixture
def share(tmp_path: Path) -> str:
    (tmp_path / "share").mkdir()
    return f"file://{tmp_path / 'share'}"


def start(settings: RegistrySettings) -> str:
    """Do what a gateway does at its start; its data directory's id."""
    with Registry.open(settings, NullNotifier()) as registry:
        home = registry.installation.take_home()
        registry.installation.check_store()
        return home


def start_worker(settings: RegistrySettings) -> None:
    with Registry.open(settings, NullNotifier()) as registry:
        registry.installation.check_home()
        registry.installation.check_store()


def upload(settings: RegistrySettings, text: str = FIRST) -> None:
    with Registry.open(settings, NullNotifier()) as registry:
        owner = Principal(registry.create_user(f"Ada {text[-5:]}")[0].id)
        registry.add_document(owner, "Kaldvik", text)


@on_both
def test_the_same_machine_starts_again_and_again(settings: RegistrySettings) -> None:
    home = start(settings)
    upload(settings)
    assert start(settings) == home
    start_worker(settings)


@on_both
def test_another_data_directory_is_refused(
    settings: RegistrySettings, machine: Callable[..., RegistrySettings]
) -> None:
    start(settings)
    upload(settings)
    for begin in (start, start_worker):
        with pytest.raises(InstallationError, match=r"not in the data directory .*second.*KM_STORE_URL"):
            begin(machine("second"))
    start(settings)


@on_both
def test_two_gateways_with_local_directories_are_refused_before_anything_is_uploaded(
    settings: RegistrySettings, machine: Callable[..., RegistrySettings]
) -> None:
    home = start(settings)
    with Registry.open(settings, NullNotifier()) as registry:
        registry.gateways.join(Gateway("gtw_a", home, "host", "vllm", "f" * 64))
        with pytest.raises(InstallationError, match="Give both the same KM_STORE_URL"):
            start(machine("second"))
        with registry._store.database.writing() as session:
            row = session.get(GatewayRow, "gtw_a")
            assert row is not None
            row.seen_at -= timedelta(seconds=20)
    # It is gone, and nothing is in its data directory.
    start(machine("second"))


def test_what_an_earlier_version_made_is_taken_on(
    settings: RegistrySettings, machine: Callable[..., RegistrySettings]
) -> None:
    upload(settings)
    start_worker(settings)
    with pytest.raises(InstallationError):
        start(machine("second"))
    start(settings)


def test_a_data_directory_that_was_moved_without_its_mark_is_taken_on(
    settings: RegistrySettings, machine: Callable[..., RegistrySettings]
) -> None:
    start(settings)
    upload(settings)
    settings.data_dir.rename(settings.data_dir.with_name("moved"))
    (settings.data_dir.with_name("moved") / "installation.json").unlink()
    start(machine("moved"))


@on_both
def test_machines_that_share_a_store_start(machine: Callable[..., RegistrySettings], share: str) -> None:
    first, second = machine("first", store_url=share), machine("second", store_url=share)
    assert start(first) != start(second)
    upload(first)
    for one in (first, second):
        start(one)
        start_worker(one)


def test_a_store_of_another_database_is_refused(
    machine: Callable[..., RegistrySettings], share: str, tmp_path: Path
) -> None:
    start(machine("first", store_url=share))
    other = machine("second", store_url=share, database_url=f"sqlite:///{tmp_path / 'other.sqlite3'}")
    with pytest.raises(InstallationError, match="belongs to another database"):
        start(other)
    with pytest.raises(InstallationError, match="belongs to another database"):
        start_worker(other)


def test_another_store_than_before_is_told_by_its_mark(
    machine: Callable[..., RegistrySettings], share: str, tmp_path: Path
) -> None:
    start(machine("first", store_url=share))
    (tmp_path / "elsewhere").mkdir()
    wrong = machine("second", store_url=f"file://{tmp_path / 'elsewhere'}")
    upload(machine("first", store_url=share))
    with pytest.raises(InstallationError, match="has none of"):
        start(wrong)


def test_with_and_without_a_store_do_not_mix(machine: Callable[..., RegistrySettings], share: str) -> None:
    start(machine("first"))
    upload(machine("first"))
    with pytest.raises(InstallationError, match="not in the store of KM_STORE_URL"):
        start(machine("second", store_url=share))


def test_without_the_store_that_it_had_it_is_refused(
    machine: Callable[..., RegistrySettings], share: str
) -> None:
    shared = machine("first", store_url=share)
    start(shared)
    upload(shared)
    for begin in (start,):
        with pytest.raises(InstallationError, match="KM_STORE_URL that the database is used with"):
            begin(machine("second"))


def test_a_store_that_is_away_says_nothing(
    machine: Callable[..., RegistrySettings], share: str, tmp_path: Path
) -> None:
    shared = machine("first", store_url=share)
    start(shared)
    (tmp_path / "share").rename(tmp_path / "gone")
    (tmp_path / "share").touch()
    with pytest.raises(StoreUnavailableError):
        start(shared)


def test_a_mark_that_cannot_be_read_is_said(settings: RegistrySettings) -> None:
    start(settings)
    (settings.data_dir / "installation.json").write_text("{")
    with pytest.raises(InstallationError, match=r"installation\.json in the data directory"):
        start(settings)


def test_sqlite_in_the_data_directory_goes_where_that_goes(tmp_path: Path) -> None:
    settings = RegistrySettings(data_dir=tmp_path / "alone", database_url=None)
    start(settings)
    upload(settings)
    (settings.data_dir / "installation.json").unlink()
    start(settings)
    start_worker(settings)


@pytest.mark.parametrize("into", ["directory", "new store", "its own store"])
def test_a_restored_backup_starts(
    machine: Callable[..., RegistrySettings], share: str, tmp_path: Path, into: str
) -> None:
    before = machine("first", store_url=share)
    start(before)
    upload(before)
    back_up(before, tmp_path / "backup")
    (tmp_path / "fresh").mkdir()
    url = {"directory": None, "new store": f"file://{tmp_path / 'fresh'}", "its own store": share}[into]
    after = machine("after", store_url=url, database_url=f"sqlite:///{tmp_path / 'after.sqlite3'}")
    restore(after, tmp_path / "backup")
    start(after)
    start_worker(after)
    start(after)
