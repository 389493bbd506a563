"""What is looked at of an adapter's files whenever they are loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from km_registry.adapter_files import CONFIG, WEIGHTS
from km_registry.artifacts import MANIFEST
from km_registry.compose import compose
from km_registry.errors import ArtifactError
from km_registry.registry import Registry
from km_registry.types import Principal
from server.engine.adapter_files import verifier
from tests.support import BASE_FINGERPRINT, write_ke, write_km


@pytest.fixture
def km(registry: Registry, owner: Principal, tmp_path: Path) -> Path:
    document, _ = registry.add_document(owner, "Harbour", "The harbour opens at six.")[:2]
    return write_km(tmp_path / "kms" / "km_1", document)


@pytest.fixture
def verify(tmp_path: Path) -> Callable[[Path], None]:
    return verifier(tmp_path / "composites", base_fingerprint=BASE_FINGERPRINT, max_rank=4)


def cut(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:-1])


def flip(directory: Path) -> None:
    data = bytearray((directory / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (directory / WEIGHTS).write_bytes(data)


def without_manifest(directory: Path) -> None:
    (directory / MANIFEST).unlink(missing_ok=True)
    (directory / "digests.json").unlink(missing_ok=True)


def reconfigured(directory: Path) -> None:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(config | {"lora_alpha": 999}))


DAMAGES = [cut, flip, without_manifest, reconfigured, shutil.rmtree]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_km_that_is_not_what_was_written(
    km: Path, verify: Callable[[Path], None], damage: Callable[[Path], None]
) -> None:
    verify(km)
    damage(km)
    with pytest.raises(ArtifactError):
        verify(km)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_composite_that_is_not_what_was_written(
    km: Path, tmp_path: Path, verify: Callable[[Path], None], damage: Callable[[Path], None]
) -> None:
    composite = tmp_path / "composites" / "km_1" / "ke_1.kc_1"
    compose(write_ke(tmp_path / "ke"), composite, km=km)
    verify(composite)
    damage(composite)
    with pytest.raises(ArtifactError):
        verify(composite)


def test_another_base_model_and_too_high_a_rank(km: Path, tmp_path: Path) -> None:
    for fingerprint, rank, words in (("0" * 64, 4, "base model"), (BASE_FINGERPRINT, 2, "rank 4")):
        with pytest.raises(ArtifactError, match=words):
            verifier(tmp_path / "composites", base_fingerprint=fingerprint, max_rank=rank)(km)
