"""What the start of a server makes of what a killed one left, and of a clock that was set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from km_registry.config import RegistrySettings
from km_registry.doctor import examination
from km_registry.events import NullNotifier
from km_registry.registry import Registry
from km_registry.store.database import Database
from km_registry.store.store import Store
from km_registry.types import Document, Job, JobState, Principal
from tests.contract.support import claimed, files_below, publish

MARK = ".uncommitted"


def left(settings: RegistrySettings) -> list[str]:
    documents = settings.data_dir / "documents"
    return sorted(str(path.relative_to(documents)) for path in documents.rglob("*"))


def findings(settings: RegistrySettings) -> list[str]:
    store = Store.open(settings, NullNotifier())
    try:
        return [finding.subject for finding in examination.examine(store)]
    finally:
        store.database.close()


class TestUploadsThatWereCutShort:
    def unfinished(self, settings: RegistrySettings, *, marked: bool = True) -> Path:
        directory = settings.data_dir / "documents" / "doc_aaaaaaaaaaaaaaaaaaaa"
        directory.mkdir()
        if marked:
            (directory / MARK).touch()
        name = ".text.txt.0123456789abcdef" if marked else "text.txt"
        (directory / name).write_text("It was private.")
        return directory

    def test_nothing_of_them_stays(
        self, registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job]
    ) -> None:
        before = left(settings)
        self.unfinished(settings)
        assert registry.recover() == 1
        assert left(settings) == before
        assert findings(settings) == []
        assert registry.recover() == 0

    def test_one_whose_row_was_committed_is_whole(
        self, registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job]
    ) -> None:
        document = kaldvik[0]
        (settings.data_dir / "documents" / document.id / MARK).touch()
        registry.recover()
        assert left(settings) == [document.id, f"{document.id}/text.txt"]
        assert "Kaldvik" in registry.read_text(document.id)

    def test_an_upload_leaves_no_mark(
        self, registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job]
    ) -> None:
        assert not [path for path in files_below(settings.data_dir) if path.name == MARK]

    def test_half_a_ke_goes(self, registry: Registry, settings: RegistrySettings) -> None:
        (settings.data_dir / "kes" / ".ke_aaaaaaaaaaaaaaaaaaaa").mkdir()
        assert registry.recover() == 1
        assert list((settings.data_dir / "kes").iterdir()) == []

    def test_documents_of_another_database_are_not_touched(
        self, registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job]
    ) -> None:
        self.unfinished(settings, marked=False)
        assert registry.recover() == 0
        assert len(left(settings)) == 4

    def test_a_version_that_was_never_recorded_goes(
        self, registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job]
    ) -> None:
        document = kaldvik[0]
        publish(registry, *kaldvik)
        (settings.data_dir / "documents" / document.id / "text-2.txt").write_text("It was private.")
        passages = registry.passages_dir(document.id)
        (passages / ".partial-00").mkdir(parents=True)
        assert registry.recover() == 2
        assert left(settings) == [document.id, f"{document.id}/text.txt"]
        assert findings(settings) == []


class TestClocksThatAreSet:
    @pytest.fixture
    def set_clock(self, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
        def to(**ahead: float) -> None:
            later = timedelta(**ahead)
            monkeypatch.setattr(Database, "moment", lambda *_: datetime.now(UTC) + later)
            for module in ("jobs", "publishing"):
                monkeypatch.setattr(f"km_registry.store.{module}.now", lambda: datetime.now(UTC) + later)

        return to

    @pytest.mark.parametrize("hours", [-48, -1, 1, 48])
    def test_a_worker_that_died_before_loses_its_job(
        self, registry: Registry, kaldvik: tuple[Document, Job], set_clock, hours: int
    ) -> None:
        first = claimed(registry, kaldvik[1].id)
        set_clock(hours=hours)
        (back,) = registry.unfinished_jobs()
        assert (back.state, back.attempt) == (JobState.QUEUED, 1)
        assert registry.cancelled(first.id, first.attempt)

    @pytest.mark.parametrize("hours", [-48, -1, 1, 48])
    def test_a_worker_that_lives_keeps_its_job_once_it_has_beaten(
        self, registry: Registry, kaldvik: tuple[Document, Job], set_clock, hours: int
    ) -> None:
        job = registry.claim(kaldvik[1].id, run_id="run")
        assert job is not None
        set_clock(hours=hours)
        assert registry.beat("run") == {(job.id, 1)}
        assert registry.unfinished_jobs() == []
        assert registry.job(job.id).state is JobState.RUNNING

    @pytest.mark.parametrize("hours", [-48, 48])
    def test_a_worker_on_a_machine_whose_clock_is_wrong_keeps_its_job(
        self,
        registry: Registry,
        kaldvik: tuple[Document, Job],
        monkeypatch: pytest.MonkeyPatch,
        hours: int,
    ) -> None:
        """Its own clock has no part in it: heartbeats are by the database's."""
        with monkeypatch.context() as patch:
            later = timedelta(hours=hours)
            for module in ("jobs", "store"):
                patch.setattr(f"km_registry.store.{module}.now", lambda: datetime.now(UTC) + later)
            job = registry.claim(kaldvik[1].id, run_id="run")
            assert job is not None
            assert registry.unfinished_jobs() == []
            assert registry.beat("run") == {(job.id, 1)}
        assert registry.unfinished_jobs() == []
        assert registry.job(job.id).state is JobState.RUNNING

    @pytest.mark.parametrize("hours", [-48, 48])
    def test_what_was_put_off_is_tried_again(
        self, registry: Registry, kaldvik: tuple[Document, Job], set_clock, hours: int
    ) -> None:
        job = claimed(registry, kaldvik[1].id)
        registry.put_off(job.id, job.attempt, "the disk is full")
        assert registry.unfinished_jobs() == []
        set_clock(hours=hours)
        assert [waiting.id for waiting in registry.unfinished_jobs()] == [job.id]
        assert claimed(registry, job.id).attempt == 2

    @pytest.mark.parametrize("hours", [-48, 48])
    def test_the_attempt_that_lost_its_job_publishes_nothing(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job], set_clock, hours: int
    ) -> None:
        claimed(registry, kaldvik[1].id)
        set_clock(hours=hours)
        registry.unfinished_jobs()
        publish(registry, *kaldvik)
        kinds = [event.kind for event in registry.events_after(kaldvik[0].id)]
        assert kinds.count("published") == 1
        assert len(registry.all_kms_of(kaldvik[0].id)) == 1
