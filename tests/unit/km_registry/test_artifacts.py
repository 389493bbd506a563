"""Files that hold knowledge."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from km_registry.artifacts import (
    COMPOSITION,
    CONFIG,
    MANIFEST,
    WEIGHTS,
    digest,
    verify,
    verify_ke,
    write_ke_manifest,
    write_manifest,
)
from km_registry.errors import ArtifactError
from km_registry.types import Document
from tests.support import BASE_FINGERPRINT, write_adapter, write_ke, write_km

DOCUMENT = Document("doc_1", "usr_1", "Kaldvik", "d" * 64, 1, datetime.now(UTC))
FIELDS = {
    "base_fingerprint": BASE_FINGERPRINT,
    "document_id": "doc_1",
    "document_sha256": "d" * 64,
    "rank": 4,
}


LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def km(tmp_path: Path) -> Path:
    return write_km(tmp_path / "km", DOCUMENT)


@pytest.fixture
def ke(tmp_path: Path) -> Path:
    return write_ke(tmp_path / "ke")


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


# --- KEs


def rewritten(ke: Path, **fields: object) -> Path:
    """The KE with a manifest of what its directory holds now."""
    manifest = json.loads((ke / MANIFEST).read_text())
    write_ke_manifest(ke, manifest | fields)
    return ke


def test_a_ke_verifies_as_it_was_written(ke: Path) -> None:
    manifest = verify_ke(ke, base_fingerprint=BASE_FINGERPRINT, max_rank=4)
    assert manifest == json.loads((ke / MANIFEST).read_text())
    assert (manifest["format"], manifest["kind"], manifest["name"]) == (1, "ke", "answers")
    assert set(manifest["files"]) == {WEIGHTS, CONFIG, COMPOSITION, "README.md"}


def test_a_ke_is_no_km_and_a_km_is_no_ke(km: Path, ke: Path) -> None:
    with pytest.raises(ArtifactError, match="no KM of format 1"):
        verify(ke)
    with pytest.raises(ArtifactError, match="no KE of format 1"):
        verify_ke(km)


@pytest.mark.parametrize("name", [COMPOSITION, "README.md", WEIGHTS])
def test_a_ke_without_one_of_its_files_is_refused(ke: Path, name: str) -> None:
    (ke / name).unlink()
    with pytest.raises(ArtifactError, match=f"names no {name}"):
        verify_ke(rewritten(ke))


def test_a_ke_that_was_altered_is_refused(ke: Path) -> None:
    _flip(ke)
    with pytest.raises(ArtifactError, match="altered"):
        verify_ke(ke)


def test_a_ke_for_another_base_model_or_of_too_high_a_rank_is_refused(ke: Path) -> None:
    with pytest.raises(ArtifactError, match="base model"):
        verify_ke(ke, base_fingerprint="0" * 64)
    with pytest.raises(ArtifactError, match="rank 4, more than 2; raise KM_KE_RANK"):
        verify_ke(ke, max_rank=2)


def test_an_alpha_that_the_configuration_does_not_have_is_refused(ke: Path) -> None:
    with pytest.raises(ArtifactError, match="alpha 4, the manifest says 8"):
        verify_ke(rewritten(ke, alpha=8))


@pytest.mark.parametrize(
    ("scalars", "said"),
    [
        ({f"{LAYER}.w_M": np.ones(1, np.float32)}, "other layers"),
        ({f"{LAYER}.w_M": np.ones(1, np.float32), "other.w_E": np.ones(1, np.float32)}, "other layers"),
        ({f"{LAYER}.{w}": np.ones(2, np.float32) for w in ("w_M", "w_E")}, "one float32 number"),
        ({f"{LAYER}.{w}": np.ones(1, np.float16) for w in ("w_M", "w_E")}, "one float32 number"),
        ({f"{LAYER}.{w}": np.full(1, np.nan, np.float32) for w in ("w_M", "w_E")}, "not finite"),
    ],
)
def test_a_composition_must_weigh_every_layer(ke: Path, scalars: dict[str, np.ndarray], said: str) -> None:
    save_file(scalars, ke / COMPOSITION)
    with pytest.raises(ArtifactError, match=said):
        verify_ke(rewritten(ke))


@pytest.mark.parametrize("name", [f"{LAYER}.lora_A.weight", f"base_model.model.{LAYER}.lora_A.weight"])
def test_a_ke_must_be_pairs_under_peft_names(ke: Path, name: str) -> None:
    save_file({name: np.ones((4, 8), np.float32)}, ke / WEIGHTS)
    with pytest.raises(ArtifactError, match="not pairs of"):
        verify_ke(rewritten(ke))


def test_a_kes_manifest_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="lacks base_model, base_fingerprint, rank, alpha, prompt_format"):
        write_ke_manifest(write_adapter(tmp_path / "ke"), {"name": "answers"})


def test_a_kes_digest_is_of_its_files(tmp_path: Path) -> None:
    one = digest(verify_ke(write_ke(tmp_path / "a", name="one", seed=1)))
    same = digest(verify_ke(write_ke(tmp_path / "b", name="other", seed=2)))
    other = digest(verify_ke(write_ke(tmp_path / "c", weights=(0.5, 0.5))))
    assert one == same
    assert one != other
