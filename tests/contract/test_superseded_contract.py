"""What newer versions and KMs took the place of, on whichever database: what goes, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from km_registry.config import RegistrySettings
from km_registry.registry import Registry
from km_registry.types import KM, Document, Job, Principal
from tests.contract.support import FIRST, SECOND, claimed, files_below, publish, purge_superseded
from tests.support import stage_km


class TestPurging:
    def test_the_former_text_and_work_go_before_its_km(
        self, registry: Registry, owner: Principal, trained: tuple[Document, KM], settings: RegistrySettings
    ) -> None:
        document, old = trained
        (registry.work_dir(old.job_id) / "synthetic.jsonl").write_text("x" * 10)
        second, job, _ = registry.update_document(owner, document.id, SECOND)
        assert registry.pending_replacements() == [document.id]
        assert purge_superseded(registry, document.id) == {
            "text_bytes": len(FIRST),
            "passage_bytes": 0,
            "work_bytes": 10,
            "adapter_bytes": 0,
            "composites": 0,
            "composite_bytes": 0,
            "kms": 0,
        }
        assert registry.pending_replacements() == []
        assert registry.superseded(document.id) is None
        assert Path(old.path).is_dir()
        assert registry.km_of(document.id) == old

        new = publish(registry, second, job)
        assert registry.pending_replacements() == [document.id]
        purged = purge_superseded(registry, document.id)
        assert (purged["kms"], purged["text_bytes"]) == (1, 0)
        assert purged["adapter_bytes"] > 0
        assert [path.name for path in (settings.data_dir / "kms").iterdir()] == [new.id]
        assert registry.all_kms_of(document.id) == [new]
        assert registry.superseded(document.id) is None

    def test_passages_go_with_the_text_that_they_are_of(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        passages = registry.passages_dir(document.id)
        for version in (document, registry.update_document(owner, document.id, SECOND)[0]):
            (passages / version.sha256).mkdir(parents=True)
            (passages / version.sha256 / "manifest.json").write_text("123")
        assert purge_superseded(registry, document.id)["passage_bytes"] == 3
        (left,) = passages.iterdir()
        assert left.name == registry.get_document(owner, document.id).sha256

    def test_passages_stay_for_a_text_that_came_back(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        (registry.passages_dir(document.id) / document.sha256).mkdir(parents=True)
        for text in (SECOND, FIRST):
            registry.update_document(owner, document.id, text)
        purge_superseded(registry, document.id)
        assert [path.name for path in registry.passages_dir(document.id).iterdir()] == [document.sha256]

    def test_it_can_be_repeated_and_goes_on_after_a_restart(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        document, _ = kaldvik
        registry.update_document(owner, document.id, SECOND)
        gone = registry.superseded(document.id)
        assert gone is not None
        registry.close()
        with Registry.open(settings) as restarted:
            assert restarted.pending_replacements() == [document.id]
            assert restarted.superseded(document.id) == gone
            assert restarted.purge_superseded(gone)["text_bytes"] == len(FIRST)
            assert restarted.purge_superseded(gone)["text_bytes"] == 0
            assert restarted.pending_replacements() == []

    def test_what_became_superseded_later_is_left_alone(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        registry.update_document(owner, document.id, SECOND)
        gone = registry.superseded(document.id)
        assert gone is not None
        registry.update_document(owner, document.id, FIRST)
        registry.purge_superseded(gone)
        assert registry.read_text(document.id, 2) == SECOND
        assert registry.pending_replacements() == [document.id]

    def test_what_a_cut_off_publication_left_goes_too(
        self,
        registry: Registry,
        owner: Principal,
        kaldvik: tuple[Document, Job],
        settings: RegistrySettings,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        document, job = kaldvik
        running = claimed(registry, job.id)
        left = settings.data_dir / "kms"

        class Killed(BaseException):
            pass

        def die_after_the_move(staged: Path, target: Path) -> Path:
            staged.rename(target)
            raise Killed

        monkeypatch.setattr("km_registry.artifacts.move_into_place", die_after_the_move)
        with pytest.raises(Killed):
            registry.publish(job.id, running.attempt, stage_km(registry, document, running), {})
        assert len(list(left.iterdir())) == 1
        registry.update_document(owner, document.id, SECOND)
        assert purge_superseded(registry, document.id)["adapter_bytes"] > 0
        assert list(left.iterdir()) == []

    def test_a_deletion_takes_all_versions(
        self, registry: Registry, owner: Principal, trained: tuple[Document, KM], settings: RegistrySettings
    ) -> None:
        document, _ = trained
        second, job, _ = registry.update_document(owner, document.id, SECOND)
        publish(registry, second, job)
        registry.tombstone(owner, document.id)
        assert registry.pending_replacements() == []
        assert registry.superseded(document.id) is None
        assert [km.version for km in registry.all_kms_of(document.id)] == [1, 2]
        purged = registry.purge(document.id)
        assert (purged["kms"], purged["jobs"], purged["versions"]) == (2, 2, 2)
        assert purged["text_bytes"] == len(FIRST) + len(SECOND)
        registry.complete_deletion(document.id, purged)
        assert files_below(settings.data_dir / "kms") == []
        needles = document.sha256.encode(), second.sha256.encode()
        for path in files_below(settings.data_dir):
            assert not any(needle in path.read_bytes() for needle in needles)

    def test_the_receipt_counts_what_went_with_former_versions(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        registry.update_document(owner, document.id, SECOND)
        purge_superseded(registry, document.id)
        registry.tombstone(owner, document.id)
        assert registry.purge(document.id)["text_bytes"] == len(FIRST) + len(SECOND)
