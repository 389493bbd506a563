"""KMs and KEs on a machine that reaches the shared store and has no records."""

from __future__ import annotations

from pathlib import Path

import pytest

from km_registry.adapter_files import WEIGHTS
from km_registry.base_model import BaseModel
from km_registry.compose import compose
from km_registry.composites import composite_dir
from km_registry.config import RegistrySettings
from km_registry.copies import Copies
from km_registry.errors import ArtifactError, StoreUnavailableError
from km_registry.registry import Registry
from km_registry.types import KE, KM, Principal
from tests.support import BASE_FINGERPRINT, away, trained, write_ke

LARGE = 10**9


@pytest.fixture
def settings(settings: RegistrySettings, share: Path) -> RegistrySettings:
    return settings.model_copy(update={"store_url": f"file://{share}"})


@pytest.fixture
def kms(registry: Registry, owner: Principal) -> list[KM]:
    return [trained(registry, owner, f"The harbour {number} opens at six.") for number in range(3)]


@pytest.fixture
def ke(registry: Registry, tmp_path: Path) -> KE:
    return registry.kes.register(write_ke(tmp_path / "ke"), BaseModel(tmp_path, "test", BASE_FINGERPRINT))[0]


@pytest.fixture
def copies(tmp_path: Path, settings: RegistrySettings) -> Copies:
    assert settings.store_url is not None
    return Copies(tmp_path / "elsewhere", settings.store_url, LARGE)


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_they_are_fetched_and_stay(
    copies: Copies, kms: list[KM], ke: KE, share: Path, tmp_path: Path
) -> None:
    for one in (kms[0], ke):
        with copies.held(one) as directory:
            assert str(directory) == copies.here(one).path != one.path
            assert directory.is_relative_to(tmp_path / "elsewhere")
            assert (directory / WEIGHTS).read_bytes() == (Path(one.path) / WEIGHTS).read_bytes()
            assert copies.is_used(one)
        assert not copies.is_used(one)
        with away(share), copies.held(one) as directory:
            assert (directory / WEIGHTS).is_file()


def test_those_used_longest_ago_make_room(
    kms: list[KM], tmp_path: Path, settings: RegistrySettings, copies: Copies
) -> None:
    with copies.held(kms[0]) as directory:
        size = sum(path.stat().st_size for path in files_in(directory))
    assert settings.store_url is not None
    small = Copies(tmp_path / "small", settings.store_url, int(1.5 * size))
    for km in kms:
        with small.held(km):
            pass
    assert [Path(small.here(km).path).exists() for km in kms] == [False, False, True]


def test_one_that_was_deleted_is_not_stored(
    copies: Copies, registry: Registry, owner: Principal, kms: list[KM], ke: KE, share: Path
) -> None:
    assert all(copies.is_stored(one) for one in (*kms, ke))
    registry.tombstone(owner, kms[0].document_id)
    registry.purge(kms[0].document_id)
    registry.kes.tombstone(ke.id)
    registry.kes.purge(ke.id)
    assert [copies.is_stored(one) for one in (*kms, ke)] == [False, True, True, False]
    with pytest.raises(ArtifactError, match="missing"), copies.held(kms[0]):
        pass
    with away(share), pytest.raises(StoreUnavailableError):
        copies.is_stored(kms[1])


def test_what_is_removed_leaves_nothing(copies: Copies, kms: list[KM], ke: KE, tmp_path: Path) -> None:
    with copies.held(kms[0]) as km_directory, copies.held(ke) as ke_directory:
        for km in (kms[0], None):
            target = composite_dir(copies.composites, ke, km)
            compose(ke_directory, target, km=km_directory if km else None)
    copies.remove(kms[0])
    assert not [path for path in files_in(tmp_path / "elsewhere") if kms[0].id in str(path)]
    copies.remove(ke)
    copies.remove(ke)
    assert files_in(tmp_path / "elsewhere") == []


def test_a_damaged_object_is_refused_and_not_kept(
    copies: Copies, kms: list[KM], share: Path, tmp_path: Path
) -> None:
    (stored,) = share.glob(f"documents/*/kms/{kms[0].id}/{WEIGHTS}")
    data = stored.read_bytes()
    stored.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="altered"), copies.held(kms[0]):
        pass
    assert files_in(tmp_path / "elsewhere") == []
    assert not copies.is_used(kms[0])


def test_a_damaged_copy_is_fetched_anew(copies: Copies, kms: list[KM]) -> None:
    with copies.held(kms[0]) as directory:
        copies.remove_if_damaged(kms[0])
        (directory / WEIGHTS).write_bytes(b"spoiled")
        copies.remove_if_damaged(kms[0])
    with copies.held(kms[0]) as directory:
        assert (directory / WEIGHTS).read_bytes() == (Path(kms[0].path) / WEIGHTS).read_bytes()
