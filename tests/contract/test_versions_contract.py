"""New versions of a document, on whichever database: which KM answers, and what goes when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from km_registry.config import RegistrySettings
from km_registry.errors import (
    ArtifactError,
    ConflictError,
    DocumentTooLargeError,
    InvalidDocumentError,
    NotFoundError,
    StaleAttemptError,
)
from km_registry.registry import Registry
from km_registry.types import KM, Document, Job, JobState, Principal
from tests.contract.support import FIRST, SECOND, claimed, files_below, publish, purge_superseded, together
from tests.support import stage_km


class TestNewVersion:
    def test_it_is_the_document_from_now_on(
        self, registry: Registry, owner: Principal, trained: tuple[Document, KM]
    ) -> None:
        first, _ = trained
        second, job, created = registry.update_document(owner, first.id, SECOND, recipe={"seed": 8})
        assert created
        assert (second.id, second.version, second.title) == (first.id, 2, "Kaldvik")
        assert registry.get_document(owner, first.id) == second
        assert registry.list_documents(owner) == [second]
        assert registry.read_text(first.id) == SECOND
        assert (job.document_id, job.version, job.state) == (first.id, 2, JobState.QUEUED)
        assert registry.job_recipe(job.id) == {"seed": 8}
        assert registry.unfinished_jobs() == [job]
        versions = registry.versions_of(first.id)
        assert [(one.version, one.sha256) for one in versions] == [(2, second.sha256), (1, first.sha256)]

    def test_the_km_so_far_answers_until_the_new_one_is_published(
        self, registry: Registry, owner: Principal, trained: tuple[Document, KM]
    ) -> None:
        first, old = trained
        second, job, _ = registry.update_document(owner, first.id, SECOND)
        assert registry.km_of(first.id) == old
        assert registry.kms_of(owner) == [old]
        new = publish(registry, second, job)
        assert (new.version, old.version) == (2, 1)
        assert new.engine_id > old.engine_id
        assert registry.km_of(first.id) == new
        assert registry.kms_of(owner) == [new]
        assert registry.all_kms_of(first.id) == [old, new]
        # Answers may still be using it.
        assert Path(old.path).is_dir()

    def test_the_text_of_a_former_version_is_kept_until_it_is_purged(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        registry.update_document(owner, document.id, SECOND)
        assert registry.read_text(document.id, 1) == FIRST
        assert registry.read_text(document.id, 2) == SECOND
        purge_superseded(registry, document.id)
        for version in (1, 3):
            with pytest.raises(NotFoundError, match=f"version {version} "):
                registry.read_text(document.id, version)
        assert registry.read_text(document.id) == SECOND

    @pytest.mark.parametrize("title", [None, "Kaldvik", "  Kaldvik "])
    def test_the_same_changes_nothing(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job], title: str | None
    ) -> None:
        document, job = kaldvik
        assert registry.update_document(owner, document.id, FIRST, title=title) == (document, job, False)
        assert len(registry.versions_of(document.id)) == 1
        assert [event.kind for event in registry.events_after(document.id)] == ["queued"]

    def test_a_new_title_is_a_new_version_since_the_teacher_reads_it(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        renamed, _, created = registry.update_document(owner, document.id, FIRST, title="Lights")
        assert created
        assert (renamed.title, renamed.version, renamed.sha256) == ("Lights", 2, document.sha256)
        assert registry.read_text(document.id, 2) == FIRST

    def test_an_old_text_may_come_back(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        registry.update_document(owner, document.id, SECOND)
        third, _, created = registry.update_document(owner, document.id, FIRST)
        assert (created, third.version, third.sha256) == (True, 3, document.sha256)

    @pytest.mark.parametrize(
        ("text", "error"), [(" ", InvalidDocumentError), ("x" * 1001, DocumentTooLargeError)]
    )
    def test_what_cannot_be_taken_changes_nothing(
        self,
        registry: Registry,
        owner: Principal,
        kaldvik: tuple[Document, Job],
        text: str,
        error: type[Exception],
        settings: RegistrySettings,
    ) -> None:
        document, job = kaldvik
        with pytest.raises(error):
            registry.update_document(owner, document.id, text)
        assert registry.get_document(owner, document.id) == document
        assert registry.unfinished_jobs() == [job]
        assert [path.name for path in files_below(settings.data_dir / "documents")] == ["text.txt"]

    def test_a_text_that_another_document_has_is_refused(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        document, job = kaldvik
        registry.add_document(owner, "other", SECOND)
        with pytest.raises(ConflictError, match="another document"):
            registry.update_document(owner, document.id, SECOND)
        assert registry.get_document(owner, document.id) == document
        assert registry.job(job.id).state is JobState.QUEUED
        assert [path.name for path in files_below(settings.data_dir / "documents")] == ["text.txt"] * 2

    def test_a_full_disk_changes_nothing(
        self,
        registry: Registry,
        owner: Principal,
        kaldvik: tuple[Document, Job],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        document, job = kaldvik

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("km_registry.artifact_store.local.atomic_write", full)
        with pytest.raises(OSError, match="No space"):
            registry.update_document(owner, document.id, SECOND)
        assert registry.get_document(owner, document.id) == document
        assert registry.unfinished_jobs() == [job]

    def test_it_is_the_owners_alone(
        self, registry: Registry, stranger: Principal, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        with pytest.raises(NotFoundError):
            registry.update_document(stranger, document.id, SECOND)
        registry.tombstone(owner, document.id)
        with pytest.raises(NotFoundError):
            registry.update_document(owner, document.id, SECOND)


class TestJobs:
    def test_the_job_of_the_former_version_is_cancelled(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, job = kaldvik
        running = claimed(registry, job.id)
        staged = stage_km(registry, document, running)
        _, new, _ = registry.update_document(owner, document.id, SECOND)
        assert registry.job(job.id).state is JobState.CANCELLED
        assert registry.cancelled(job.id, running.attempt)
        assert registry.job_of(document.id) == new
        assert [one.id for one in registry.jobs_of(document.id)] == [new.id, job.id]
        with pytest.raises(StaleAttemptError):
            registry.publish(job.id, running.attempt, staged, {})
        assert not staged.exists()
        told = [(event.kind, event.job_id) for event in registry.events_after(document.id)]
        assert told == [("queued", job.id), ("cancelled", job.id), ("queued", new.id)]

    def test_a_km_of_the_former_text_is_refused(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        first, _ = kaldvik
        _, job, _ = registry.update_document(owner, first.id, SECOND)
        running = claimed(registry, job.id)
        with pytest.raises(ArtifactError, match="another document"):
            registry.publish(job.id, running.attempt, stage_km(registry, first, running), {})

    def test_a_version_may_be_trained_again_with_another_recipe(
        self, registry: Registry, owner: Principal, trained: tuple[Document, KM]
    ) -> None:
        document, old = trained
        job = registry.retrain(owner, document.id, {"seed": 9})
        assert (job.version, registry.job_recipe(job.id)) == (1, {"seed": 9})
        assert registry.km_of(document.id) == old
        with pytest.raises(ConflictError, match="being trained"):
            registry.retrain(owner, document.id, {"seed": 10})
        new = publish(registry, document, job)
        assert registry.km_of(document.id) == new
        gone = registry.superseded(document.id)
        assert gone is not None
        assert (gone.versions, gone.kms, gone.job_ids) == ((), (old,), (old.job_id,))

    def test_after_a_failure_the_recipe_stays_unless_another_is_given(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, job = kaldvik
        registry.fail(job.id, claimed(registry, job.id).attempt, "no")
        again = registry.retrain(owner, document.id)
        assert registry.job_recipe(again.id) == {"seed": 7}
        registry.fail(again.id, claimed(registry, again.id).attempt, "no")
        assert registry.job_recipe(registry.retrain(owner, document.id, {}).id) == {}

    def test_a_new_version_is_trained_from_the_km_before(
        self, registry: Registry, owner: Principal, trained: tuple[Document, KM]
    ) -> None:
        document, old = trained
        assert registry.previous_km(old.job_id) is None
        _, job, _ = registry.update_document(owner, document.id, SECOND)
        assert registry.previous_km(job.id) == old
        third, job, _ = registry.update_document(owner, document.id, FIRST)
        assert registry.previous_km(job.id) == old
        new = publish(registry, third, job)
        assert registry.previous_km(job.id) is None
        # Another recipe for the same version begins afresh.
        assert registry.previous_km(registry.retrain(owner, document.id, {}).id) is None
        assert registry.km_of(document.id) == new


class TestRaces:
    @pytest.mark.parametrize("round_", range(8))
    def test_a_version_that_comes_while_the_old_one_is_published(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job], round_: int
    ) -> None:
        document, job = kaldvik
        running = claimed(registry, job.id)
        staged = stage_km(registry, document, running)

        def act(index: int) -> KM | None:
            if index == round_ % 2:
                registry.update_document(owner, document.id, SECOND)
                return None
            try:
                return registry.publish(job.id, running.attempt, staged, {})
            except StaleAttemptError:
                return None

        published = next((km for km in together(2, act) if km is not None), None)
        # Either the old KM was in time and answers meanwhile, or nothing of it is left.
        assert registry.km_of(document.id) == published
        assert staged.exists() is False
        newest = registry.get_document(owner, document.id)
        assert newest.version == 2
        (waiting,) = registry.unfinished_jobs()
        assert (waiting.version, registry.previous_km(waiting.id)) == (2, published)
        new = publish(registry, newest, waiting)
        while (gone := registry.superseded(document.id)) is not None:
            registry.purge_superseded(gone)
        assert registry.all_kms_of(document.id) == [new]
        assert (new.version, registry.read_text(document.id)) == (2, SECOND)
        assert [path.name for path in Path(new.path).parent.iterdir()] == [new.id]

    def test_versions_that_come_at_once_are_numbered_one_after_the_other(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        made = together(4, lambda index: registry.update_document(owner, document.id, f"text {index}"))
        assert sorted(one.version for one, _, _ in made) == [2, 3, 4, 5]
        newest = next(one for one, _, _ in made if one.version == 5)
        assert registry.get_document(owner, document.id) == newest
        assert (
            registry.read_text(document.id) == f"text {made.index(next(m for m in made if m[0] == newest))}"
        )
        (waiting,) = registry.unfinished_jobs()
        assert waiting.version == 5


def test_trainings_are_listed_with_job_and_km(
    registry: Registry, owner: Principal, trained: tuple[Document, KM]
) -> None:
    document, km = trained
    second, job, _ = registry.update_document(owner, document.id, SECOND)
    other, other_job, _ = registry.add_document(owner, "other", "another text")
    listed = registry.trainings([other.id, "doc_unknown", document.id])
    assert [(one.document, one.job, one.km) for one in listed] == [
        (other, other_job, None),
        (second, job, km),
    ]
    assert registry.trainings([]) == []
