"""Files that hold knowledge."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from km_registry.artifacts import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    atomic_write,
    digest,
    purge_dir,
    verify,
    write_manifest,
)
from km_registry.errors import ArtifactError
from km_registry.types import Document
from tests.support import BASE_FINGERPRINT, write_adapter, write_km

DOCUMENT = Document("doc_1", "usr_1", "Kaldvik", "d" * 64, 1, datetime.now(UTC))
FIELDS = {
    "base_fingerprint": BASE_FINGERPRINT,
    "document_id": "doc_1",
    "document_sha256": "d" * 64,
    "rank": 4,
}


@pytest.fixture
def km(tmp_path: Path) -> Path:
    return write_km(tmp_path / "km", DOCUMENT)


def write_weights(path: Path, dtype: str, bits: np.ndarray, name: str = "x.lora_A.weight") -> None:
    described = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": [0, bits.nbytes]}
    header = json.dumps({name: described}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())


def test_a_km_verifies_as_it_was_written(km: Path) -> None:
    manifest = verify(km, base_fingerprint=BASE_FINGERPRINT, max_rank=4)
    assert manifest == json.loads((km / MANIFEST).read_text())
    assert (manifest["format"], manifest["kind"], manifest["title"]) == (1, "km", "Kaldvik")
    assert set(manifest["files"]) == {WEIGHTS, CONFIG, "README.md"}


def _truncate(km: Path) -> None:
    os.truncate(km / WEIGHTS, (km / WEIGHTS).stat().st_size - 1)


def _flip(km: Path) -> None:
    data = bytearray((km / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (km / WEIGHTS).write_bytes(data)


def _link(km: Path) -> None:
    (km / "README.md").rename(km.parent / "elsewhere")
    (km / "README.md").symlink_to(km.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate, "bytes instead of"),
        (_flip, "altered"),
        (_link, "plain file"),
        (lambda km: (km / WEIGHTS).unlink(), f"lacks {WEIGHTS}"),
        (lambda km: (km / "extra.bin").touch(), "extra.bin, unknown"),
        (lambda km: (km / "extra").mkdir(), "extra, unknown"),
        (lambda km: (km / MANIFEST).unlink(), f"lacks {MANIFEST}"),
        (lambda km: (km / MANIFEST).write_text("{"), "not JSON"),
        (lambda km: (km / MANIFEST).write_text("[]"), "not a JSON object"),
        (lambda km: (km / MANIFEST).write_text('{"format": 2, "kind": "km"}'), "format 1"),
        (lambda km: (km / MANIFEST).write_text('{"format": 1, "kind": "km"}'), "lacks base_fingerprint"),
    ],
)
def test_damage_is_refused(km: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(km)
    with pytest.raises(ArtifactError, match=said):
        verify(km)


def test_a_manifest_without_weights_is_refused(km: Path) -> None:
    (km / WEIGHTS).unlink()
    write_manifest(km, FIELDS)
    with pytest.raises(ArtifactError, match=f"names no {WEIGHTS}"):
        verify(km)


def test_another_base_model_is_refused(km: Path) -> None:
    with pytest.raises(ArtifactError, match="base model"):
        verify(km, base_fingerprint="0" * 64)


def test_a_rank_above_the_limit_is_refused(km: Path) -> None:
    with pytest.raises(ArtifactError, match="rank 4, more than 2"):
        verify(km, max_rank=2)


def test_a_rank_that_the_weights_do_not_have_is_refused(tmp_path: Path) -> None:
    km = write_adapter(tmp_path / "km")
    write_manifest(km, FIELDS | {"rank": 2})
    with pytest.raises(ArtifactError, match="says rank 4"):
        verify(km)
    config = json.loads((km / CONFIG).read_text())
    (km / CONFIG).write_text(json.dumps(config | {"r": 2}))
    write_manifest(km, FIELDS | {"rank": 2})
    with pytest.raises(ArtifactError, match=r"has rank 4, not 2"):
        verify(km, max_rank=2)


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_adapters_that_are_not_served_are_refused(tmp_path: Path, setting: dict[str, object]) -> None:
    km = write_adapter(tmp_path / "km")
    config = json.loads((km / CONFIG).read_text())
    (km / CONFIG).write_text(json.dumps(config | setting))
    write_manifest(km, FIELDS)
    with pytest.raises(ArtifactError, match=next(iter(setting))):
        verify(km)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("F32", np.float32(np.nan)),
        ("F32", np.float32(np.inf)),
        ("F16", np.float16(-np.inf)),
        ("F64", np.float64(np.nan)),
        ("BF16", np.uint16(0x7FC0)),
        ("BF16", np.uint16(0xFF80)),
    ],
)
def test_tensors_that_are_not_finite_are_refused(tmp_path: Path, dtype: str, bits: np.generic) -> None:
    km = write_adapter(tmp_path / "km")
    values = np.zeros((4, 8), dtype=bits.dtype)
    write_weights(km / WEIGHTS, dtype, values)
    write_manifest(km, FIELDS)
    assert verify(km)["rank"] == 4
    values[3, 7] = bits
    write_weights(km / WEIGHTS, dtype, values)
    write_manifest(km, FIELDS)
    with pytest.raises(ArtifactError, match="not finite"):
        verify(km)


def test_weights_that_are_no_lora_are_refused(tmp_path: Path) -> None:
    km = write_adapter(tmp_path / "km")
    for name, dtype, values, said in [
        ("x.lora_A.weight", "I32", np.zeros((4, 8), np.int32), "not floating-point"),
        ("lm_head.weight", "F32", np.zeros((4, 8), np.float32), "no LoRA matrix"),
        ("x.lora_A.weight", "F32", np.zeros((4,), np.float32), "no LoRA matrix"),
    ]:
        write_weights(km / WEIGHTS, dtype, values, name)
        write_manifest(km, FIELDS)
        with pytest.raises(ArtifactError, match=said):
            verify(km)
    (km / WEIGHTS).write_bytes(b"not safetensors")
    write_manifest(km, FIELDS)
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        verify(km)


def test_a_manifest_must_be_whole_and_finite(tmp_path: Path) -> None:
    km = write_adapter(tmp_path / "km")
    with pytest.raises(ArtifactError, match="lacks document_id, document_sha256, rank"):
        write_manifest(km, {"base_fingerprint": "f"})
    with pytest.raises(ArtifactError, match="finite"):
        write_manifest(km, FIELDS | {"metrics": {"loss": float("nan")}})
    assert not (km / MANIFEST).exists()


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    first = verify(write_km(tmp_path / "a", DOCUMENT, metrics={"seconds": 1}))
    same = verify(write_km(tmp_path / "b", DOCUMENT, metrics={"seconds": 2}))
    other_base = verify(write_km(tmp_path / "c", DOCUMENT, base_fingerprint="0" * 64))
    other_weights = write_adapter(tmp_path / "d", fill=0.25)
    assert digest(first) == digest(same)
    assert len({digest(first), digest(other_base), digest(write_manifest(other_weights, FIELDS))}) == 3


def test_an_atomic_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    atomic_write(path, b"one")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(path.parent.iterdir()) == [path]


def test_purging_counts_bytes_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    inside = tmp_path / "inside"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "a").write_bytes(b"12345")
    (inside / "link").symlink_to(outside)
    assert purge_dir(inside) == 5 + len(str(outside))
    assert not inside.exists()
    assert purge_dir(inside) == 0
    assert (outside / "kept").read_bytes() == b"kept"
