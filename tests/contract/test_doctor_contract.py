"""Doctor: what is sound is called sound, every kind of damage is found, and mended where it can be."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from km_registry.config import RegistrySettings
from km_registry.doctor.examination import examine, repair
from km_registry.doctor.findings import Finding
from km_registry.events import NullNotifier
from km_registry.registry import Registry
from km_registry.store.store import Store
from km_registry.tables import DocumentVersionRow, EventRow, JobRow, KMRow
from km_registry.types import KE, KM, Document, Job, JobState, Principal
from tests.contract.support import SECOND, claimed, files_below, publish, purge_superseded
from tests.contract.test_ke_contract import BASE
from tests.support import write_ke


@pytest.fixture
def store(settings: RegistrySettings, registry: Registry) -> Iterator[Store]:
    """The same records and files as `registry`, looked at from beside."""
    opened = Store.open(settings, NullNotifier())
    yield opened
    opened.database.close()


def found(store: Store) -> list[tuple[str, str]]:
    return [(finding.subject, finding.problem) for finding in examine(store)]


def mended(store: Store) -> list[Finding]:
    """Mend what can be; what is left."""
    return [outcome.finding for outcome in repair(examine(store)) if not outcome.repaired]


class TestSound:
    """Every state that the registry itself makes is sound."""

    def test_nothing_there(self, store: Store) -> None:
        assert found(store) == []

    def test_in_training_and_trained(
        self, store: Store, registry: Registry, owner: Principal, trained: tuple[Document, KM]
    ) -> None:
        _, job, _ = registry.add_document(owner, "n", "another")
        claimed(registry, job.id)
        (registry.work_dir(job.id) / "synthetic.jsonl").write_text("x")
        passages = registry.passages_dir(trained[0].id)
        (passages / trained[0].sha256).mkdir(parents=True)
        assert found(store) == []

    def test_after_a_failure_what_a_retry_gets_stays(
        self, store: Store, registry: Registry, kaldvik: tuple[Document, Job]
    ) -> None:
        job = claimed(registry, kaldvik[1].id)
        (registry.work_dir(job.id) / "kept").write_text("x")
        registry.fail(job.id, job.attempt, "no", keep=["kept"])
        assert found(store) == []

    def test_with_a_newer_version_before_and_after_the_purge(
        self, store: Store, registry: Registry, owner: Principal, trained: tuple[Document, KM]
    ) -> None:
        document, job, _ = registry.update_document(owner, trained[0].id, SECOND)
        assert found(store) == []
        publish(registry, document, job)
        assert found(store) == []
        purge_superseded(registry, document.id)
        assert found(store) == []

    def test_at_every_step_of_a_deletion(
        self, store: Store, registry: Registry, owner: Principal, trained: tuple[Document, KM]
    ) -> None:
        document_id = trained[0].id
        registry.tombstone(owner, document_id)
        assert found(store) == []
        purged = registry.purge(document_id)
        assert found(store) == []
        registry.complete_deletion(document_id, purged)
        assert found(store) == []


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


class TestDamagedKM:
    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda km: _flip(km / "adapter_model.safetensors"), "was altered"),
            (lambda km: (km / "README.md").unlink(), "lacks README.md"),
            (lambda km: (km / "extra.bin").write_bytes(b"x"), "unknown to its manifest"),
            (lambda km: (km / "manifest.json").write_text("{"), "not JSON"),
            (shutil.rmtree, "missing"),
        ],
    )
    def test_it_is_removed_and_trained_again(
        self,
        store: Store,
        registry: Registry,
        trained: tuple[Document, KM],
        damage: Callable[[Path], object],
        said: str,
    ) -> None:
        document, km = trained
        damage(Path(km.path))
        ((subject, problem),) = found(store)
        assert (subject, said in problem) == (km.id, True)
        assert registry.km_of(document.id) == km  # looking changes nothing
        assert mended(store) == []
        assert found(store) == []
        assert registry.km_of(document.id) is None
        job = registry.job_of(document.id)
        assert (job.state, registry.job_recipe(job.id)) == (JobState.QUEUED, {"seed": 7})
        assert not Path(km.path).exists()
        publish(registry, document, job)

    def test_one_that_was_exchanged_is_found(
        self, store: Store, registry: Registry, owner: Principal, trained: tuple[Document, KM]
    ) -> None:
        other, job, _ = registry.add_document(owner, "other", "another text")
        foreign = publish(registry, other, job)
        shutil.rmtree(trained[1].path)
        shutil.copytree(foreign.path, trained[1].path)
        assert [subject for subject, _ in found(store)] == [trained[1].id]


class TestDamagedText:
    @pytest.mark.parametrize(
        ("damage", "said"), [(_flip, "was altered"), (lambda path: path.unlink(), "is missing")]
    )
    def test_a_person_is_told_what_to_do(
        self,
        store: Store,
        registry: Registry,
        settings: RegistrySettings,
        kaldvik: tuple[Document, Job],
        damage: Callable[[Path], object],
        said: str,
    ) -> None:
        (file,) = files_below(settings.data_dir / "documents")
        damage(file)
        (left,) = mended(store)
        assert left.subject == kaldvik[0].id
        assert said in left.problem
        assert "upload it again" in left.remedy


class TestOrphans:
    @pytest.mark.parametrize(
        "path",
        [
            "documents/doc_gone/text.txt",
            "documents/{document}/text-9.txt",
            "documents/{document}/.text.txt.0a1b",
            "kms/km_gone/adapter_model.safetensors",
            "work/job_gone/synthetic.jsonl",
            "passages/{document}/{another}/index.faiss",
            "passages/{document}/.partial-00/index.faiss",
            "passages/doc_gone/aa/index.faiss",
            "kms/stray-file",
        ],
    )
    def test_what_belongs_to_nothing_is_removed(
        self, store: Store, settings: RegistrySettings, trained: tuple[Document, KM], path: str
    ) -> None:
        named = path.format(document=trained[0].id, another="0" * 64)
        file = settings.data_dir / named
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("left over")
        before = set(files_below(settings.data_dir)) - {file}
        ((subject, _),) = found(store)
        assert named.startswith(subject)
        assert mended(store) == []
        assert {one for one in before if "sqlite3" not in one.name} <= set(files_below(settings.data_dir))
        assert not file.exists()
        assert found(store) == []

    def test_work_of_a_published_km_is_an_orphan(
        self, store: Store, registry: Registry, trained: tuple[Document, KM]
    ) -> None:
        (registry.work_dir(trained[1].job_id) / "synthetic.jsonl").write_text("x")
        assert found(store) == [(f"work/{trained[1].job_id}", "it belongs to nothing that is recorded")]


class TestKEs:
    @pytest.fixture
    def ke(self, registry: Registry, tmp_path: Path) -> KE:
        return registry.kes.register(write_ke(tmp_path / "ke"), BASE)[0]

    def test_one_that_was_altered_is_told(self, store: Store, ke: KE) -> None:
        assert found(store) == []
        _flip(Path(ke.path) / "adapter_model.safetensors")
        (left,) = mended(store)
        assert (left.subject, "register" in left.remedy) == (ke.id, True)

    def test_a_composite_needs_its_km_and_its_ke(
        self, store: Store, settings: RegistrySettings, trained: tuple[Document, KM], ke: KE
    ) -> None:
        root = settings.data_dir / "composites"
        for name in (
            f"{trained[1].id}/{ke.id}.ab",
            f"alone/{ke.id}.cd",
            "alone/ke_gone.ab",
            f"km_gone/{ke.id}.ab",
        ):
            (root / name).mkdir(parents=True)
        assert {subject for subject, _ in found(store)} == {
            "composites/alone/ke_gone.ab",
            f"composites/km_gone/{ke.id}.ab",
        }
        assert mended(store) == []
        assert found(store) == []


class TestRecords:
    def test_a_document_without_a_job_gets_one(
        self, store: Store, registry: Registry, kaldvik: tuple[Document, Job]
    ) -> None:
        with store.transaction() as transaction:
            transaction.session.execute(delete(EventRow))
            transaction.session.execute(delete(JobRow))
        assert found(store) == [(kaldvik[0].id, "it has no job")]
        assert mended(store) == []
        assert registry.job_of(kaldvik[0].id).state is JobState.QUEUED

    def test_a_trained_document_without_its_km_is_trained_again(
        self, store: Store, registry: Registry, trained: tuple[Document, KM]
    ) -> None:
        with store.transaction() as transaction:
            transaction.session.execute(delete(KMRow))
        assert (trained[0].id, "it was trained and has no KM") in found(store)
        assert mended(store) == []
        assert registry.job_of(trained[0].id).state is JobState.QUEUED
        assert found(store) == []

    @pytest.mark.parametrize("damage", ["lost", "another"])
    def test_a_version_that_is_not_the_documents_is_told(
        self, store: Store, kaldvik: tuple[Document, Job], damage: str
    ) -> None:
        with store.transaction() as transaction:
            if damage == "lost":
                transaction.session.execute(delete(DocumentVersionRow))
            else:
                transaction.session.execute(update(DocumentVersionRow).values(sha256="0" * 64))
        assert kaldvik[0].id in {finding.subject for finding in mended(store)}
