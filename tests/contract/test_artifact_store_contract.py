"""What every store of artifacts does, seen from the registries of two machines; and what a shared one does
when it is away or spoiled."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import LocalStore, ObjectStore

from km_registry.backup.backup import back_up
from km_registry.backup.restore import restore
from km_registry.base_model import BaseModel
from km_registry.config import RegistrySettings
from km_registry.copies import Copies
from km_registry.doctor.examination import examine, repair
from km_registry.errors import ArtifactError, ConflictError, NotFoundError, StoreUnavailableError
from km_registry.events import MemoryNotifier, NullNotifier
from km_registry.registry import Registry
from km_registry.store.store import Store
from km_registry.types import KE, KM, Document, Job, JobState, Principal
from tests.contract.support import FIRST, SECOND, claimed, files_below, publish, purge_superseded
from tests.object_store import S3Server, keys, raw
from tests.support import BASE_FINGERPRINT, stage_km, write_ke


@pytest.fixture
def database_url() -> None:
    """SQLite in the data directory."""


@pytest.fixture(params=["data directory", "mounted directory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    match request.param:
        case "s3":
            return f"s3://{request.getfixturevalue('s3').bucket()}/km/here"
        case "mounted directory":
            (tmp_path / "mounted").mkdir()
            return f"file://{tmp_path / 'mounted'}"
        case _:
            return None


@pytest.fixture
def settings(tmp_path: Path, store_url: str | None) -> RegistrySettings:
    return RegistrySettings(
        data_dir=tmp_path / "data", database_url=None, store_url=store_url, max_document_bytes=1000
    )


#: Where only what machines share can be shown.
shared = pytest.mark.parametrize("store_url", ["mounted directory", "s3"], indirect=True)
on_s3 = pytest.mark.parametrize("store_url", ["s3"], indirect=True)


@contextmanager
def another_machine(settings: RegistrySettings, tmp_path: Path, **more: Any) -> Iterator[Registry]:
    """A registry with the same records and the same store, or data directory, and nothing else."""
    elsewhere = tmp_path / "elsewhere"
    changed = {"database_url": settings.effective_database_url} | more
    if settings.store_url is not None:
        changed["data_dir"] = elsewhere
    with Registry.open(settings.model_copy(update=changed), MemoryNotifier()) as opened:
        yield opened


def bucket(settings: RegistrySettings) -> ObjectStore:
    assert settings.store_url is not None
    if settings.store_url.startswith("file://"):
        return LocalStore(settings.store_url.removeprefix("file://"))
    return raw(settings.store_url)


def weights_key(settings: RegistrySettings) -> str:
    return next(key for key in keys(bucket(settings)) if key.endswith("adapter_model.safetensors"))


def problems(settings: RegistrySettings, *, mend: bool = False) -> list[str]:
    store = Store.open(settings, NullNotifier())
    try:
        found = examine(store)
        if mend:
            assert all(outcome.repaired for outcome in repair(found))
        return [finding.problem for finding in found]
    finally:
        store.database.close()


class TestEveryStore:
    def test_another_machine_reads_what_this_one_wrote(
        self,
        registry: Registry,
        settings: RegistrySettings,
        trained: tuple[Document, KM],
        tmp_path: Path,
    ) -> None:
        document, km = trained
        ke, _ = registry.kes.register(
            write_ke(tmp_path / "ke"), BaseModel(tmp_path, "test", BASE_FINGERPRINT), make_default=True
        )
        with another_machine(settings, tmp_path) as other:
            assert other.read_text(document.id) == FIRST
            found = other.km_of(document.id)
            assert found is not None
            with other.held_km(found) as directory, registry.held_km(km) as here:
                assert sorted(path.name for path in directory.iterdir()) == sorted(
                    path.name for path in here.iterdir()
                )
                for path in here.iterdir():
                    assert (directory / path.name).read_bytes() == path.read_bytes()
            (other_ke,) = other.kes.all()
            with other.kes.held(other_ke) as directory:
                assert (directory / "composition.safetensors").is_file()
            assert other_ke.digest == ke.digest
        assert problems(settings) == []

    def test_a_manifest_is_read_without_the_rest(
        self,
        registry: Registry,
        settings: RegistrySettings,
        trained: tuple[Document, KM],
        tmp_path: Path,
    ) -> None:
        _, km = trained
        written = (Path(km.path) / "manifest.json").read_bytes()
        with another_machine(settings, tmp_path) as other:
            assert other.km_manifest(km) == registry.km_manifest(km) == written
            with pytest.raises(FileNotFoundError):
                other.km_manifest(replace(km, id="km_unknown"))
        if settings.store_url is not None:
            assert files_below(tmp_path / "elsewhere" / "cache") == []

    def test_an_index_of_passages_is_seen_whole(
        self,
        registry: Registry,
        settings: RegistrySettings,
        trained: tuple[Document, KM],
        tmp_path: Path,
    ) -> None:
        document, _ = trained
        with pytest.raises(FileNotFoundError), registry.held_passages(document.id, "a" * 64, print) as path:
            (path / "manifest.json").read_bytes()
        directory = registry.passages_dir(document.id) / document.sha256
        directory.mkdir(parents=True)
        (directory / "index.faiss").write_text("vectors")
        (directory / "manifest.json").write_text('{"files": {}}')
        registry.share_passages(document.id, document.sha256)
        with (
            another_machine(settings, tmp_path) as other,
            other.held_passages(document.id, document.sha256, print) as found,
        ):
            assert (found / "index.faiss").read_text() == "vectors"

    def test_what_is_deleted_is_gone_everywhere(
        self,
        registry: Registry,
        settings: RegistrySettings,
        owner: Principal,
        trained: tuple[Document, KM],
        tmp_path: Path,
    ) -> None:
        document, _ = trained
        with another_machine(settings, tmp_path) as other:
            km = other.km_of(document.id)
            assert km is not None
            with other.held_km(km):
                assert other.read_text(document.id) == FIRST
            registry.tombstone(owner, document.id)
            purged = registry.purge(document.id)
            registry.complete_deletion(document.id, purged)
            assert purged["text_bytes"] == len(FIRST)
            assert purged["adapter_bytes"] > 0
            if settings.store_url is not None:
                assert purged["store_objects"] == 5
                assert purged["store_bytes"] == purged["adapter_bytes"] + len(FIRST)
                assert keys(bucket(settings)) == []
                # Twice, since a file may be there a moment before its row.
                assert (other.sweep(), other.sweep()) == (0, 2)
        held = [path for path in files_below(tmp_path) if FIRST.encode() in path.read_bytes()]
        assert held == []
        assert problems(settings) == []

    def test_what_is_superseded_is_gone_and_the_rest_stays(
        self,
        registry: Registry,
        settings: RegistrySettings,
        owner: Principal,
        trained: tuple[Document, KM],
        tmp_path: Path,
    ) -> None:
        document, first = trained
        _, job, _ = registry.update_document(owner, document.id, SECOND)
        again = registry.get_document(owner, document.id)
        second = publish(registry, again, job)
        removed = purge_superseded(registry, document.id)
        assert (removed["kms"], removed["text_bytes"]) == (1, len(FIRST))
        with another_machine(settings, tmp_path) as other:
            with other.held_km(second) as directory:
                assert (directory / "manifest.json").is_file()
            assert other.read_text(document.id) == SECOND
        if settings.store_url is not None:
            assert not any(first.id in key for key in keys(bucket(settings)))
        assert problems(settings) == []

    def test_a_ke_is_removed(self, registry: Registry, settings: RegistrySettings, tmp_path: Path) -> None:
        base = BaseModel(tmp_path, "test", BASE_FINGERPRINT)
        ke, _ = registry.kes.register(write_ke(tmp_path / "ke"), base)
        registry.kes.tombstone(ke.id)
        assert registry.kes.purge(ke.id)["adapter_bytes"] > 0
        if settings.store_url is not None:
            assert keys(bucket(settings)) == []
        assert not Path(ke.path).exists()

    def test_an_attempt_that_lost_its_job_leaves_nothing(
        self, registry: Registry, settings: RegistrySettings, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, job = kaldvik
        running_job = claimed(registry, job.id)
        staged = stage_km(registry, document, running_job)
        registry.cancel(owner, document.id)
        with pytest.raises(Exception, match="no longer owns"):
            registry.publish(job.id, running_job.attempt, staged, {})
        if settings.store_url is not None:
            assert len(keys(bucket(settings))) == 1, "the text alone"
        assert problems(settings) == []

    def test_a_backup_holds_it_and_is_put_back(
        self,
        registry: Registry,
        settings: RegistrySettings,
        trained: tuple[Document, KM],
        tmp_path: Path,
        request: pytest.FixtureRequest,
    ) -> None:
        document, km = trained
        backup = back_up(settings, tmp_path / "backup")
        assert (backup.documents, backup.kms) == (1, 1)
        changed: dict[str, Any] = {"data_dir": tmp_path / "restored"}
        if settings.store_url is not None:
            (tmp_path / "second").mkdir()
            changed["store_url"] = f"file://{tmp_path / 'second'}"
        back = settings.model_copy(update=changed)
        restore(back, backup.path)
        assert problems(back) == []
        # From the store alone.
        shutil.rmtree(back.data_dir / "cache", ignore_errors=True)
        with Registry.open(back, MemoryNotifier()) as opened:
            assert opened.read_text(document.id) == FIRST
            with opened.held_km(km) as directory:
                assert (directory / "manifest.json").is_file()


@shared
class TestCopies:
    def test_those_used_longest_ago_leave_but_none_in_use(
        self, registry: Registry, settings: RegistrySettings, owner: Principal, tmp_path: Path
    ) -> None:
        kms = []
        for number in range(4):
            document, job, _ = registry.add_document(owner, f"n{number}", f"{FIRST} {number}")
            kms.append(publish(registry, document, job))
        one_km = sum(path.stat().st_size for path in Path(kms[0].path).iterdir())
        bound = 2.5 * one_km / 2**30
        with another_machine(settings, tmp_path, store_cache_gb=bound) as other:

            def here() -> list[KM]:
                return [km for km in kms if (tmp_path / "elsewhere" / "cache" / "kms" / km.id).exists()]

            with other.held_km(kms[0]) as used:
                for km in kms[1:]:
                    with other.held_km(km):
                        pass
                assert here() == [kms[0], kms[3]]
                assert (used / "manifest.json").is_file()
            with other.held_km(kms[1]), other.held_km(kms[2]):
                assert here() == [kms[1], kms[2]]

    def test_another_process_that_uses_one_keeps_it(
        self, registry: Registry, settings: RegistrySettings, trained: tuple[Document, KM], tmp_path: Path
    ) -> None:
        _, km = trained
        # A lock is of the one that opened, in whatever process.
        descriptor = os.open(km.path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        store = Store.open(settings.model_copy(update={"store_cache_gb": 1e-9}), NullNotifier())
        store.artifacts.cache.make_room()  # type: ignore[attr-defined]
        assert Path(km.path).is_dir()
        os.close(descriptor)
        store.artifacts.cache.make_room()  # type: ignore[attr-defined]
        assert not Path(km.path).exists()
        store.database.close()

    def test_a_damaged_copy_is_found_and_fetched_anew(
        self, registry: Registry, settings: RegistrySettings, trained: tuple[Document, KM]
    ) -> None:
        document, km = trained
        (Path(km.path) / "README.md").write_text("altered")
        (settings.data_dir / "cache" / "documents" / document.id / "text.txt").write_text("altered")
        assert registry.read_text(document.id) == FIRST
        assert len(problems(settings, mend=True)) == 1
        with registry.held_km(km) as directory:
            assert (directory / "README.md").read_text() == "A KM made by a test.\n"
        assert problems(settings) == []

    def test_a_data_directory_with_documents_does_not_become_a_cache(
        self, settings: RegistrySettings, tmp_path: Path
    ) -> None:
        alone = settings.model_copy(update={"store_url": None, "data_dir": tmp_path / "alone"})
        with Registry.open(alone, MemoryNotifier()) as opened:
            ada = Principal(opened.create_user("Ada")[0].id)
            opened.add_document(ada, "n", FIRST)
        with pytest.raises(ConflictError, match="back it up"):
            Registry.open(alone.model_copy(update={"store_url": settings.store_url}), MemoryNotifier())


@shared
@pytest.mark.parametrize("spoil", ["altered", "truncated", "missing", "no manifest"])
def test_a_damaged_object_is_refused_and_never_kept(
    registry: Registry,
    settings: RegistrySettings,
    trained: tuple[Document, KM],
    tmp_path: Path,
    spoil: str,
) -> None:
    _, km = trained
    store, key = bucket(settings), weights_key(settings)
    data = bytes(obstore.get(store, key).bytes())
    match spoil:
        case "altered":
            obstore.put(store, key, data[:-1] + bytes([data[-1] ^ 1]))
        case "truncated":
            obstore.put(store, key, data[:-1])
        case "missing":
            obstore.delete(store, key)
        case _:
            obstore.delete(store, key.replace("adapter_model.safetensors", "manifest.json"))
    with another_machine(settings, tmp_path) as other:
        with pytest.raises(ArtifactError), other.held_km(km):
            pytest.fail("it was taken")
        assert files_below(tmp_path / "elsewhere" / "cache") == []
    if spoil != "altered":
        # Contents are compared when they are fetched: doctor looks at what is there, and how large.
        assert len(problems(settings)) == 1


@shared
def test_a_machine_without_records_sees_what_was_deleted(
    registry: Registry,
    settings: RegistrySettings,
    owner: Principal,
    trained: tuple[Document, KM],
    tmp_path: Path,
) -> None:
    document, km = trained
    assert settings.store_url is not None
    copies = Copies(tmp_path / "replica", settings.store_url, 10**9)
    with copies.held(km) as directory:
        assert (directory / "manifest.json").is_file()
    assert copies.is_stored(km)
    registry.tombstone(owner, document.id)
    registry.purge(document.id)
    assert not copies.is_stored(km)
    copies.remove(km)
    assert files_below(tmp_path / "replica") == []


@shared
def test_an_altered_text_is_refused(
    registry: Registry, settings: RegistrySettings, trained: tuple[Document, KM], tmp_path: Path
) -> None:
    document, _ = trained
    obstore.put(bucket(settings), f"documents/{document.id}/text.txt", b"something else")
    with another_machine(settings, tmp_path) as other:
        with pytest.raises(ArtifactError, match="altered"):
            other.read_text(document.id)
        assert files_below(tmp_path / "elsewhere" / "cache") == []


@shared
def test_what_no_record_names_is_found_in_the_store(
    registry: Registry, settings: RegistrySettings, trained: tuple[Document, KM]
) -> None:
    obstore.put(bucket(settings), "documents/doc_unknown/text.txt", b"left")
    assert problems(settings, mend=True) == ["it belongs to nothing that is recorded"]
    assert not any("unknown" in key for key in keys(bucket(settings)))
    # Of a store that knows nothing of ours, nothing is removed: it may be another one's.
    foreign = settings.model_copy(update={"database_url": f"sqlite:///{settings.data_dir}/another.sqlite3"})
    store = Store.open(foreign, NullNotifier())
    strays = [one for one in examine(store) if "in the store" in one.subject]
    store.database.close()
    assert [one.repair for one in strays] == [None]


class Away:
    """The store goes away within `gone`."""

    def __init__(self, s3: S3Server) -> None:
        self._s3 = s3

    @contextmanager
    def gone(self) -> Iterator[None]:
        self._s3.stop()
        try:
            yield
        finally:
            self._s3.start()


@on_s3
class TestAway:
    @pytest.fixture
    def away(self, s3: S3Server) -> Away:
        return Away(s3)

    def test_reads_of_copies_go_on_and_nothing_is_half_written(
        self,
        registry: Registry,
        settings: RegistrySettings,
        owner: Principal,
        trained: tuple[Document, KM],
        away: Away,
        tmp_path: Path,
    ) -> None:
        document, km = trained
        with ExitStack() as stack:
            other = stack.enter_context(another_machine(settings, tmp_path))
            with away.gone():
                assert registry.read_text(document.id) == FIRST
                with registry.held_km(km) as directory:
                    assert (directory / "manifest.json").is_file()
                with pytest.raises(StoreUnavailableError):
                    other.read_text(document.id)
                with pytest.raises(StoreUnavailableError):
                    registry.add_document(owner, "new", SECOND)
                with pytest.raises(StoreUnavailableError):
                    registry.update_document(owner, document.id, SECOND)
                assert "cannot list now" in problems(settings)[-1]
            assert registry.list_documents(owner) == [document]
            assert other.read_text(document.id) == FIRST
            assert registry.recover() == 1
            assert problems(settings) == []
            assert registry.add_document(owner, "new", SECOND)[2]

    def test_a_km_is_published_when_it_is_back(
        self,
        registry: Registry,
        settings: RegistrySettings,
        kaldvik: tuple[Document, Job],
        away: Away,
    ) -> None:
        document, job = kaldvik
        running_job = claimed(registry, job.id)
        staged = stage_km(registry, document, running_job)
        with away.gone(), pytest.raises(StoreUnavailableError):
            registry.publish(job.id, running_job.attempt, staged, {})
        assert registry.job(job.id).state is JobState.RUNNING
        assert registry.km_of(document.id) is None
        km = registry.publish(job.id, running_job.attempt, staged, {})
        assert registry.km_of(document.id) == km

    def test_a_deletion_is_completed_when_it_is_back(
        self,
        registry: Registry,
        settings: RegistrySettings,
        owner: Principal,
        trained: tuple[Document, KM],
        away: Away,
    ) -> None:
        document, _ = trained
        registry.tombstone(owner, document.id)
        with away.gone():
            with pytest.raises(StoreUnavailableError):
                registry.purge(document.id)
            with pytest.raises(NotFoundError):
                registry.read_text(document.id)
        assert [one.id for one in registry.pending_deletions()] == [document.id]
        receipt = registry.complete_deletion(document.id, registry.purge(document.id))
        assert receipt.purged["store_objects"] == 5
        assert keys(bucket(settings)) == []


@on_s3
def test_a_bucket_that_is_not_there_is_said(settings: RegistrySettings) -> None:
    wrong = settings.model_copy(update={"store_url": "s3://no-such-bucket"})
    with Registry.open(wrong, MemoryNotifier()) as opened:
        ada = Principal(opened.create_user("Ada")[0].id)
        with pytest.raises(StoreUnavailableError, match="no such bucket"):
            opened.add_document(ada, "n", FIRST)
        assert opened.list_documents(ada) == []
    # Or all that was ever fetched from there would be taken for deleted.
    copies = Copies(wrong.data_dir / "replica", "s3://no-such-bucket", 10**9)
    ke = KE("ke_1", "n", 1, "d" * 64, "", "test", BASE_FINGERPRINT, 4, "f", "ke", False, datetime.now(UTC))
    with pytest.raises(StoreUnavailableError, match="cannot list"):
        copies.is_stored(ke)
    # The mark by which the next start looks for the rest.
    shutil.rmtree(wrong.data_dir / "cache" / "documents")
