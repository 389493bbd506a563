"""Backup and restore: whole while others write, into either database, over nothing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from km_registry.artifacts import verify, verify_ke
from km_registry.backup import backup as backups
from km_registry.backup.backup import back_up
from km_registry.backup.restore import restore
from km_registry.backup.rows import closing_database
from km_registry.config import RegistrySettings
from km_registry.doctor.examination import examine
from km_registry.errors import ArtifactError, ConflictError, NotFoundError
from km_registry.events import NullNotifier
from km_registry.registry import Registry
from km_registry.store.store import Store
from km_registry.tables import Base
from km_registry.types import KM, Document, Job, JobState, Principal
from tests.contract.support import claimed, files_below, publish
from tests.contract.test_ke_contract import BASE
from tests.support import stage_km, write_ke

CANARY = "canary-5d1c"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backups" / "today"


@pytest.fixture(params=["sqlite", "postgresql"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistrySettings]:
    """An empty place to restore to, on either database."""
    if request.param == "sqlite":
        yield RegistrySettings(data_dir=tmp_path / "elsewhere", database_url=None)
        return
    with request.getfixturevalue("postgres").database() as url:
        yield RegistrySettings(data_dir=tmp_path / "elsewhere", database_url=url)


def problems(settings: RegistrySettings) -> list[str]:
    store = Store.open(settings, NullNotifier())
    try:
        return [f"{finding.subject}: {finding.problem}" for finding in examine(store)]
    finally:
        store.database.close()


def rows(store: Store) -> dict[str, list[tuple[object, ...]]]:
    with store.database.reading() as session:
        return {
            table.name: [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))]
            for table in Base.metadata.sorted_tables
        }


@contextmanager
def meanwhile(act: Callable[[int], object]) -> Iterator[None]:
    """Do this over and over, in another thread, as long as the block runs."""
    over = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for number in itertools.count():
                if over.is_set():
                    return
                act(number)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert failures == []


def test_everything_comes_back(
    registry: Registry,
    settings: RegistrySettings,
    owner: Principal,
    trained: tuple[Document, KM],
    target: Path,
    elsewhere: RegistrySettings,
    tmp_path: Path,
) -> None:
    document, km = trained
    _, secret = registry.create_user("Cy")
    registry.add_document(owner, "waits", "another text", {"seed": 3})
    ke, _ = registry.kes.register(write_ke(tmp_path / "ke"), BASE)
    made = back_up(settings, target)
    assert (made.documents, made.kms) == (2, 1)
    assert problems(settings.model_copy(update={"data_dir": target, "database_url": None})) == []
    restore(elsewhere, target)
    assert problems(elsewhere) == []
    with Registry.open(elsewhere) as restored:
        assert restored.get_document(owner, document.id) == document
        assert restored.read_text(document.id) == registry.read_text(document.id)
        back = restored.km_of(document.id)
        assert back is not None
        assert (back.id, back.engine_id, back.digest) == (km.id, km.engine_id, km.digest)
        verify(Path(back.path))
        (ke_back,) = restored.kes.all()
        assert verify_ke(Path(ke_back.path)) == verify_ke(Path(ke.path))
        assert restored.authenticate(secret) == registry.authenticate(secret)
        assert restored.events_after(document.id) == registry.events_after(document.id)
        assert restored.unfinished_jobs() == registry.unfinished_jobs()


def test_ids_go_on_where_they_were(
    registry: Registry,
    settings: RegistrySettings,
    owner: Principal,
    trained: tuple[Document, KM],
    target: Path,
    elsewhere: RegistrySettings,
) -> None:
    other, job, _ = registry.add_document(owner, "other", "another text")
    last = publish(registry, other, job)
    registry.tombstone(owner, other.id)
    registry.complete_deletion(other.id, registry.purge(other.id))
    back_up(settings, target)
    restore(elsewhere, target)
    with Registry.open(elsewhere) as restored:
        document, job, _ = restored.add_document(owner, "third", "a third text")
        assert publish(restored, document, job).engine_id > last.engine_id


def test_what_trained_is_queued_again(
    registry: Registry,
    settings: RegistrySettings,
    kaldvik: tuple[Document, Job],
    target: Path,
    elsewhere: RegistrySettings,
) -> None:
    running = claimed(registry, kaldvik[1].id)
    back_up(settings, target)
    restore(elsewhere, target)
    with Registry.open(elsewhere) as restored:
        job = restored.job(running.id)
        assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 1, 0)
        publish(restored, kaldvik[0], job)


def test_what_is_deleted_is_not_in_it(
    registry: Registry, settings: RegistrySettings, owner: Principal, target: Path
) -> None:
    document, job, _ = registry.add_document(owner, f"T {CANARY}", f"x {CANARY}")
    publish(registry, document, job)
    registry.tombstone(owner, document.id)  # and its purge has not begun
    back_up(settings, target)
    needles = CANARY.encode(), document.sha256.encode()
    holding = [path for path in files_below(target) if any(one in path.read_bytes() for one in needles)]
    assert holding == []
    with Registry.open(settings.model_copy(update={"data_dir": target, "database_url": None})) as copy:
        assert copy.receipt(owner, document.id).document_id == document.id


def test_it_is_whole_while_others_write(
    registry: Registry,
    settings: RegistrySettings,
    owner: Principal,
    trained: tuple[Document, KM],
    target: Path,
) -> None:
    """Documents come, change, are trained and deleted without pause; every backup is sound all the same."""

    def act(number: int) -> None:
        document, job, _ = registry.add_document(owner, f"n{number}", f"text {number}")
        publish(registry, document, job)
        registry.update_document(owner, document.id, f"text {number}, again")
        gone = registry.superseded(document.id)
        assert gone is not None
        registry.purge_superseded(gone)
        if number % 3:
            registry.tombstone(owner, document.id)
            registry.complete_deletion(document.id, registry.purge(document.id))

    with meanwhile(act):
        made = [back_up(settings, target.with_name(f"copy-{number}")) for number in range(3)]
    for one in made:
        assert problems(settings.model_copy(update={"data_dir": one.path, "database_url": None})) == []
        with closing_database(one.path / "registry.sqlite3") as database, database.reading() as session:
            assert trained[1].id in session.scalars(select(Base.metadata.tables["kms"].c.id)).all()


def test_a_document_deleted_while_it_is_copied_is_left_out(
    registry: Registry,
    settings: RegistrySettings,
    owner: Principal,
    trained: tuple[Document, KM],
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    document, job, _ = registry.add_document(owner, "goes", CANARY)
    publish(registry, document, job)
    copy_adapter = backups._copy_adapter

    def deleting_first(*arguments: Any) -> None:
        if registry.pending_deletions() == [] and document.id in map(_id, registry.list_documents(owner)):
            registry.tombstone(owner, document.id)
            registry.complete_deletion(document.id, registry.purge(document.id))
        copy_adapter(*arguments)

    monkeypatch.setattr(backups, "_copy_adapter", deleting_first)
    assert back_up(settings, target).documents == 1
    assert [path for path in files_below(target) if CANARY.encode() in path.read_bytes()] == []
    assert problems(settings.model_copy(update={"data_dir": target, "database_url": None})) == []


def _id(document: Document) -> str:
    return document.id


def test_a_damaged_file_is_no_backup(
    registry: Registry,
    settings: RegistrySettings,
    trained: tuple[Document, KM],
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backups, "_PAUSE_S", 0)
    (Path(trained[1].path) / "README.md").write_text("altered")
    with pytest.raises(ArtifactError, match=r"README\.md"):
        back_up(settings, target)
    assert not target.exists()
    assert list(target.parent.iterdir()) == []


class TestRefusals:
    def test_a_backup_overwrites_nothing(
        self, registry: Registry, settings: RegistrySettings, target: Path
    ) -> None:
        target.mkdir(parents=True)
        with pytest.raises(ConflictError, match="exists"):
            back_up(settings, target)

    def test_a_restore_overwrites_no_records(
        self, registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job], target: Path
    ) -> None:
        back_up(settings, target)
        before = registry.job(kaldvik[1].id)
        with pytest.raises(ConflictError, match="nothing is overwritten"):
            restore(settings, target)
        assert registry.job(kaldvik[1].id) == before

    def test_a_restore_overwrites_no_files(
        self,
        registry: Registry,
        settings: RegistrySettings,
        kaldvik: tuple[Document, Job],
        target: Path,
        elsewhere: RegistrySettings,
    ) -> None:
        back_up(settings, target)
        mine = elsewhere.data_dir / "kms" / "mine"
        mine.mkdir(parents=True)
        with pytest.raises(ConflictError, match="holds files already"):
            restore(elsewhere, target)
        assert mine.exists()

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda path: (path / "backup.json").unlink(), "is no backup"),
            (lambda path: (path / "backup.json").write_text("{"), "not JSON"),
            (lambda path: (path / "registry.sqlite3").write_bytes(b"x"), "was altered"),
            (lambda path: next(path.glob("documents/*/*")).unlink(), "lacks documents/"),
        ],
    )
    def test_a_damaged_backup_is_not_restored(
        self,
        registry: Registry,
        settings: RegistrySettings,
        kaldvik: tuple[Document, Job],
        target: Path,
        elsewhere: RegistrySettings,
        damage: Callable[[Path], object],
        said: str,
    ) -> None:
        back_up(settings, target)
        damage(target)
        with pytest.raises(ArtifactError, match=said):
            restore(elsewhere, target)
        assert not elsewhere.data_dir.exists()


def test_a_restore_that_was_cut_short_is_done_again(
    registry: Registry,
    settings: RegistrySettings,
    owner: Principal,
    trained: tuple[Document, KM],
    target: Path,
    elsewhere: RegistrySettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever of its steps it dies at, it can be run again."""
    from km_registry.backup import restore as module

    class Killed(BaseException):
        pass

    back_up(settings, target)
    for step in itertools.count():
        left = itertools.count(step, -1)

        def dying(staged: Path, final: Path, left: Iterator[int] = left) -> Path:
            if next(left) == 0:
                raise Killed
            staged.rename(final)
            return final

        with monkeypatch.context() as patch:
            patch.setattr(module, "move_into_place", dying)
            try:
                restore(elsewhere, target)
            except Killed:
                continue
        break
    assert step >= 2
    assert problems(elsewhere) == []
    with Registry.open(elsewhere) as restored:
        assert restored.km_of(trained[0].id) is not None


def test_an_unpublished_attempt_survives_no_restore(
    registry: Registry,
    settings: RegistrySettings,
    kaldvik: tuple[Document, Job],
    target: Path,
    elsewhere: RegistrySettings,
) -> None:
    """A worker of the former server can publish into the one it knows only."""
    running = claimed(registry, kaldvik[1].id)
    staged = stage_km(registry, kaldvik[0], running)
    back_up(settings, target)
    restore(elsewhere, target)
    registry.publish(running.id, running.attempt, staged, {})
    with Registry.open(elsewhere) as restored:
        assert restored.km_of(kaldvik[0].id) is None
        with pytest.raises(NotFoundError):
            restored.job("job_unknown")
