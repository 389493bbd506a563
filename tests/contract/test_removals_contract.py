"""Removal of a KM alone, of a former version, of a user: gone at once, completed when nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from km_registry.config import RegistrySettings
from km_registry.errors import ConflictError, InvalidValueError, NotAllowedError, NotFoundError
from km_registry.registry import Registry
from km_registry.types import KM, Document, Job, JobState, Principal, RemovalKind
from tests.contract.support import FIRST, SECOND, claimed, files_below, publish, purge_superseded


@pytest.fixture
def admin(registry: Registry) -> Principal:
    return Principal(registry.create_user("Root", is_admin=True)[0].id, is_admin=True)


class TestKM:
    def test_the_document_stays_and_may_be_trained_again(
        self, registry: Registry, owner: Principal, trained: tuple[Document, KM]
    ) -> None:
        document, km = trained
        removal = registry.removals.remove_km(owner, document.id)
        assert (removal.kind, removal.km_ids, removal.completed_at) == (RemovalKind.KM, (km.id,), None)
        assert registry.km_of(document.id) is None
        assert registry.read_text(document.id) == FIRST
        assert registry.removals.pending() == [removal]
        with pytest.raises(ConflictError, match="not purged"):
            registry.removals.complete(removal.id)
        with pytest.raises(NotFoundError):
            registry.removals.receipt(owner, removal.id)
        purge_superseded(registry, document.id)
        assert not Path(km.path).exists()
        receipt = registry.removals.complete(removal.id)
        assert receipt.completed_at is not None
        assert registry.removals.complete(removal.id) == receipt
        assert registry.removals.receipt(owner, removal.id) == receipt
        assert registry.removals.pending() == []
        again = registry.retrain(owner, document.id)
        assert registry.job_recipe(again.id) == {"seed": 7}
        assert publish(registry, document, again).id != km.id

    def test_a_training_is_cancelled_and_its_work_goes(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        job = claimed(registry, kaldvik[1].id)
        (registry.work_dir(job.id) / "synthetic.jsonl").write_text("x")
        removal = registry.removals.remove_km(owner, kaldvik[0].id)
        assert registry.cancelled(job.id, job.attempt)
        registry.removals.complete(removal.id)
        assert list(registry.work_dir(job.id).iterdir()) == []

    def test_not_while_a_worker_holds_its_files(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        job = registry.claim(kaldvik[1].id, run_id="run-1")
        assert job is not None
        removal = registry.removals.remove_km(owner, kaldvik[0].id)
        with pytest.raises(ConflictError, match="worker"):
            registry.removals.complete(removal.id)
        registry.let_go("run-1", job.id, job.attempt)
        assert registry.removals.complete(removal.id).completed_at is not None

    def test_there_has_to_be_one(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        registry.removals.remove_km(owner, kaldvik[0].id)
        with pytest.raises(ConflictError, match="nothing to delete"):
            registry.removals.remove_km(owner, kaldvik[0].id)

    def test_it_is_the_owners_alone(
        self, registry: Registry, stranger: Principal, admin: Principal, trained: tuple[Document, KM]
    ) -> None:
        for who in (stranger, admin):
            with pytest.raises(NotFoundError):
                registry.removals.remove_km(who, trained[0].id)
            with pytest.raises(NotFoundError):
                registry.removals.remove_version(who, trained[0].id, 1)
        assert registry.km_of(trained[0].id) == trained[1]


class TestVersion:
    def test_a_former_version_goes_with_its_km(
        self,
        registry: Registry,
        owner: Principal,
        trained: tuple[Document, KM],
        settings: RegistrySettings,
    ) -> None:
        document, km = trained
        registry.update_document(owner, document.id, SECOND)
        removal = registry.removals.remove_version(owner, document.id, 1)
        assert (removal.version, removal.km_ids) == (1, (km.id,))
        assert registry.km_of(document.id) is None
        with pytest.raises(ConflictError):
            registry.removals.complete(removal.id)
        purge_superseded(registry, document.id)
        receipt = registry.removals.complete(removal.id)
        assert (receipt.purged["kms"], receipt.purged["versions"], receipt.purged["trainings"]) == (1, 1, 1)
        assert [one.version for one in registry.versions_of(document.id)] == [2]
        assert [job.version for job in registry.jobs_of(document.id)] == [2]
        assert registry.job_of(document.id).state is JobState.QUEUED
        assert registry.read_text(document.id) == SECOND
        holding = [path for path in files_below(settings.data_dir) if FIRST.encode() in path.read_bytes()]
        assert holding == []

    def test_the_newest_is_not_removed(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        with pytest.raises(ConflictError, match="newest"):
            registry.removals.remove_version(owner, kaldvik[0].id, 1)
        with pytest.raises(NotFoundError):
            registry.removals.remove_version(owner, kaldvik[0].id, 2)


class TestUser:
    def test_nothing_of_them_works_any_more(
        self, registry: Registry, admin: Principal, stranger: Principal
    ) -> None:
        user, secret = registry.create_user("Cy")
        cy = Principal(user.id)
        document, job, _ = registry.add_document(cy, "n", FIRST)
        registry.people.share(cy, document.id, user=stranger.user_id)
        removal = registry.removals.remove_user(admin, cy.user_id)
        assert registry.authenticate(secret) is None
        for who in (cy, stranger):
            with pytest.raises(NotFoundError):
                registry.get_document(who, document.id)
        assert registry.job(job.id).state is JobState.CANCELLED
        with pytest.raises(NotFoundError):
            registry.add_document(cy, "n", SECOND)
        with pytest.raises(InvalidValueError):
            registry.people.create_key(admin, "new", user="Cy")
        assert "Cy" not in [one.name for one in registry.people.users(admin)]
        with pytest.raises(ConflictError, match="not deleted yet"):
            registry.removals.complete(removal.id)
        registry.complete_deletion(document.id, registry.purge(document.id))
        receipt = registry.removals.complete(removal.id)
        assert receipt.purged == {"documents": 1, "users": 1}
        assert registry.removals.receipt(admin, removal.id) == receipt
        assert registry.receipt(admin, document.id).document_id == document.id
        # The name is free again.
        assert registry.create_user("Cy")[0].id != user.id

    def test_only_for_administrators(
        self, registry: Registry, owner: Principal, stranger: Principal, admin: Principal
    ) -> None:
        with pytest.raises(NotAllowedError):
            registry.removals.remove_user(owner, stranger.user_id)
        with pytest.raises(NotFoundError):
            registry.removals.remove_user(admin, "usr_unknown")

    def test_the_last_administrator_stays(self, registry: Registry, admin: Principal) -> None:
        with pytest.raises(ConflictError, match="last administrator"):
            registry.removals.remove_user(admin, admin.user_id)
        assert registry.people.user(admin.user_id).is_admin
