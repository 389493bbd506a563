"""KEs in the registry, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from km_registry.artifacts import CONFIG
from km_registry.base_model import BaseModel
from km_registry.composites import ALONE, composite_dir
from km_registry.errors import InvalidKEError, NotFoundError
from km_registry.registry import Registry
from km_registry.types import KE, KM, Document, Principal
from tests.contract.support import SECOND, files_below, publish, purge_superseded
from tests.support import BASE_FINGERPRINT, write_ke

BASE = BaseModel(Path("/models/test"), "test", BASE_FINGERPRINT)


@pytest.fixture
def ke(registry: Registry, tmp_path: Path) -> KE:
    found, _ = registry.kes.register(write_ke(tmp_path / "ke"), BASE)
    return found


def composite(registry: Registry, ke: KE, km: KM | None = None) -> Path:
    """A stand-in for a composite, where it belongs; 7 bytes."""
    path = composite_dir(registry.kes.composites, ke, km)
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"7 bytes")
    return path


def test_a_ke_is_registered_with_what_its_manifest_says(registry: Registry, ke: KE, tmp_path: Path) -> None:
    assert ke.id.startswith("ke_")
    assert (ke.name, ke.version, ke.rank, ke.trained, ke.is_default) == ("answers", 1, 4, "km+ke", False)
    assert ke.metrics == {"answer_nll": 1.5}
    assert registry.kes.all() == [ke]
    assert registry.kes.find(ke.id) == registry.kes.find("answers") == ke
    original, kept = tmp_path / "ke", Path(ke.path)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
        path.name: path.read_bytes() for path in original.iterdir()
    }


def test_the_same_content_is_the_same_ke(registry: Registry, ke: KE, tmp_path: Path) -> None:
    again = registry.kes.register(write_ke(tmp_path / "again"), BASE)
    assert again == (ke, False)


def test_the_newest_version_answers_to_the_name(registry: Registry, ke: KE, tmp_path: Path) -> None:
    second, new = registry.kes.register(write_ke(tmp_path / "second", fill=0.75), BASE)
    assert (second.version, new) == (2, True)
    assert registry.kes.find("answers") == second
    assert registry.kes.find(ke.id) == ke
    assert registry.kes.all() == [second, ke]
    registry.kes.tombstone(second.id)
    assert registry.kes.find("answers") == ke
    third, _ = registry.kes.register(write_ke(tmp_path / "third", fill=0.5), BASE)
    assert third.version == 3


def test_one_for_another_base_model_is_found_only_if_it_may_be(registry: Registry, ke: KE) -> None:
    assert registry.kes.find("answers", base_fingerprint=BASE_FINGERPRINT) == ke
    assert registry.kes.find("answers", base_fingerprint="0" * 64) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"base_fingerprint": "0" * 64}, "is for the base model"),
        ({"rank": 32}, "rank 32, more than 16; raise KM_KE_RANK"),
        ({"name": "none"}, "cannot be called 'none'"),
        ({"name": "default"}, "cannot be called 'default'"),
        ({"name": "../up"}, "cannot be called"),
        ({"name": 7}, "cannot be called"),
    ],
)
def test_what_does_not_fit_is_refused(
    registry: Registry, tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    directory = write_ke(tmp_path / "ke", **fields)  # type: ignore[arg-type]
    with pytest.raises(InvalidKEError, match=said):
        registry.kes.register(directory, BASE)
    assert registry.kes.all() == []
    assert files_below(Path(registry.kes.composites).parent / "kes") == []


def test_what_is_no_ke_is_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidKEError, match="no directory on the server"):
        registry.kes.register(tmp_path / "missing", BASE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidKEError, match=r"lacks manifest\.json"):
        registry.kes.register(tmp_path / "empty", BASE)
    damaged = write_ke(tmp_path / "ke")
    (damaged / CONFIG).write_text("{}")
    with pytest.raises(InvalidKEError, match="bytes instead of"):
        registry.kes.register(damaged, BASE)


def test_a_registration_that_fails_leaves_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    directory = write_ke(tmp_path / "ke")
    monkeypatch.setattr("km_registry.ke_records.artifacts.move_into_place", full)
    with pytest.raises(OSError, match="no space"):
        registry.kes.register(directory, BASE)
    assert registry.kes.all() == []
    assert list((Path(registry.kes.composites).parent / "kes").iterdir()) == []


def test_there_is_one_default_for_a_base_model(registry: Registry, ke: KE, tmp_path: Path) -> None:
    assert registry.kes.default_for(BASE_FINGERPRINT) is None
    assert registry.kes.set_default(ke.id).is_default
    other, _ = registry.kes.register(
        write_ke(tmp_path / "b", name="other", fill=0.75), BASE, make_default=True
    )
    assert other.is_default
    assert registry.kes.default_for(BASE_FINGERPRINT) == other
    assert [one.is_default for one in registry.kes.all()] == [False, True]
    assert registry.kes.default_for("0" * 64) is None
    # Registering it again makes it the default as well.
    same, new = registry.kes.register(write_ke(tmp_path / "a"), BASE, make_default=True)
    assert (same.id, new) == (ke.id, False)
    assert registry.kes.default_for(BASE_FINGERPRINT) == same


def test_a_tombstoned_ke_is_found_by_nobody(registry: Registry, ke: KE) -> None:
    registry.kes.set_default(ke.id)
    registry.kes.tombstone(ke.id)
    assert registry.kes.all() == []
    assert registry.kes.find(ke.id) is None
    assert registry.kes.default_for(BASE_FINGERPRINT) is None
    assert [one.id for one in registry.kes.pending()] == [ke.id]
    assert registry.kes.had(ke.digest)
    for call in (registry.kes.tombstone, registry.kes.set_default):
        with pytest.raises(NotFoundError):
            call(ke.id)


def test_a_ke_is_purged_with_its_composites(
    registry: Registry, ke: KE, trained: tuple[Document, KM], tmp_path: Path
) -> None:
    other, _ = registry.kes.register(write_ke(tmp_path / "b", name="other", fill=0.75), BASE)
    made = [composite(registry, ke, trained[1]), composite(registry, ke)]
    kept = [composite(registry, other, trained[1]), composite(registry, other)]
    registry.kes.tombstone(ke.id)
    size = sum(path.stat().st_size for path in Path(ke.path).iterdir())
    assert registry.kes.purge(ke.id) == {"adapter_bytes": size, "composites": 2, "composite_bytes": 14}
    assert not Path(ke.path).exists()
    assert not any(path.exists() for path in made)
    assert all(path.exists() for path in kept)
    assert registry.kes.pending() == []
    assert registry.kes.purge(ke.id) == {"adapter_bytes": 0, "composites": 0, "composite_bytes": 0}


def test_a_documents_composites_are_purged_with_it(
    registry: Registry, owner: Principal, ke: KE, trained: tuple[Document, KM]
) -> None:
    document, km = trained
    composite(registry, ke, km)
    alone = composite(registry, ke)
    registry.tombstone(owner, document.id)
    purged = registry.purge(document.id)
    assert (purged["composites"], purged["composite_bytes"]) == (1, 7)
    assert not (registry.kes.composites / km.id).exists()
    assert alone.parent.name == ALONE
    assert alone.exists()
    receipt = registry.complete_deletion(document.id, purged)
    assert receipt.purged["composites"] == 1


def test_a_superseded_kms_composites_are_purged_with_it(
    registry: Registry, owner: Principal, ke: KE, trained: tuple[Document, KM]
) -> None:
    document, km = trained
    old = composite(registry, ke, km)
    changed, job, _ = registry.update_document(owner, document.id, SECOND)
    newer = publish(registry, changed, job)
    new = composite(registry, ke, newer)
    purged = purge_superseded(registry, document.id)
    assert (purged["composites"], purged["composite_bytes"]) == (1, 7)
    assert (old.exists(), new.exists()) == (False, True)


def test_kms_are_found_by_when_they_were_published(
    registry: Registry, owner: Principal, trained: tuple[Document, KM]
) -> None:
    first = trained[1]
    document, job, _ = registry.add_document(owner, "Other", SECOND)
    second = publish(registry, document, job)
    assert registry.kms_after(0) == [first, second]
    assert registry.kms_after(first.engine_id) == [second]
    registry.tombstone(owner, document.id)
    assert registry.kms_after(first.engine_id) == []
