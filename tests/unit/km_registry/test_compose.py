"""Composition: one LoRA that is a KM and a KE together, exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from km_registry.adapter_files import COMPOSITION, CONFIG, PREFIX, WEIGHTS, as_float32
from km_registry.compose import (
    DIGESTS,
    Lora,
    compose,
    composite_name,
    joined,
    read_lora,
    read_scalars,
    verify_composite,
)
from km_registry.errors import ArtifactError
from tests.support import write_adapter, write_ke

LAYER = "model.layers.0.self_attn.q_proj"


def matrix(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def lora(rank: int, scale: float, **pairs: tuple[np.ndarray, np.ndarray]) -> Lora:
    return Lora(pairs, rank, scale, "test")


def random_lora(seed: int, rank: int, scale: float, shapes: dict[str, tuple[int, int]]) -> Lora:
    """`shapes` are (out, in)."""
    draw = np.random.default_rng(seed)
    pairs = {
        layer: (
            draw.normal(size=(rank, inner)).astype(np.float32),
            draw.normal(size=(outer, rank)).astype(np.float32),
        )
        for layer, (outer, inner) in shapes.items()
    }
    return Lora(pairs, rank, scale, "test")


def test_a_pair_by_hand() -> None:
    km = lora(1, 2.0, up=(matrix([1, 2]), matrix([1], [0], [2])))
    ke = lora(1, 1.0, up=(matrix([3, -1]), matrix([0], [1], [1])))
    pairs, rank = joined(km, ke, {"up": (0.5, 4.0)})
    a, b = pairs["up"]
    assert rank == 2
    assert a.tolist() == [[1, 2], [3, -1]]
    assert b.tolist() == [[1, 0], [0, 4], [2, 4]]


def test_a_square_layer_by_hand() -> None:
    # Were a matrix's orientation guessed by its shape, this is where it would go wrong.
    km = lora(2, 1.0, q=(matrix([1, 2], [3, 4]), matrix([5, 6], [7, 8])))
    ke = lora(2, 0.5, q=(matrix([0, 1], [1, 0]), matrix([2, 4], [6, 8])))
    pairs, rank = joined(km, ke, {"q": (1.0, 2.0)})
    a, b = pairs["q"]
    assert rank == 4
    assert a.tolist() == [[1, 2], [3, 4], [0, 1], [1, 0]]
    assert b.tolist() == [[5, 6, 2, 4], [7, 8, 6, 8]]


def test_a_ke_alone_has_its_own_weight() -> None:
    ke = lora(1, 2.0, q=(matrix([3, -1]), matrix([1], [5])))
    pairs, rank = joined(None, ke, {"q": (9.0, 0.25)})
    assert rank == 1
    assert [half.tolist() for half in pairs["q"]] == [[[3, -1]], [[0.5], [2.5]]]


def test_layers_of_one_of_the_two_only_keep_what_they_do() -> None:
    km = lora(1, 2.0, q=(matrix([1, 1]), matrix([1], [2])))
    ke = lora(1, 1.0, k=(matrix([3, 4]), matrix([5], [6])))
    pairs, rank = joined(km, ke, {"k": (0.5, 0.5)})
    assert rank == 2
    assert [half.tolist() for half in pairs["q"]] == [[[1, 1], [0, 0]], [[2, 0], [4, 0]]]
    assert [half.tolist() for half in pairs["k"]] == [[[3, 4], [0, 0]], [[2.5, 0], [3, 0]]]


def test_it_is_both_applied_apart() -> None:
    shapes = {"q": (64, 64), "k": (24, 64), "up": (160, 64), "down": (64, 160)}
    km, ke = random_lora(1, 16, 1.0, shapes), random_lora(2, 8, 2.0, shapes)
    scalars = {layer: (0.3 + 0.1 * i, 0.9 - 0.1 * i) for i, layer in enumerate(shapes)}
    pairs, _ = joined(km, ke, scalars)
    for layer, (outer, inner) in shapes.items():
        x = np.random.default_rng(3).normal(size=(5, inner)).astype(np.float32)
        apart = np.zeros((5, outer), dtype=np.float32)
        for one, weight in zip((km, ke), scalars[layer], strict=True):
            a, b = one.pairs[layer]
            apart += np.float32(weight * one.scale) * ((x @ a.T) @ b.T)
        a, b = pairs[layer]
        together = (x @ a.T) @ b.T
        assert together.dtype == np.float32
        assert np.abs(together - apart).max() <= 1e-5 * np.abs(apart).max()


def test_layers_of_other_shapes_are_refused() -> None:
    km, ke = random_lora(1, 2, 1.0, {"q": (8, 8)}), random_lora(2, 2, 1.0, {"q": (8, 16)})
    with pytest.raises(ArtifactError, match="layer q has another shape"):
        joined(km, ke, {"q": (0.5, 0.5)})


def test_scalars_of_other_layers_are_refused() -> None:
    ke = random_lora(2, 2, 1.0, {"q": (8, 8)})
    with pytest.raises(ArtifactError, match="other layers than the KE adapts"):
        joined(None, ke, {"k": (0.5, 0.5)})


def test_a_composite_is_a_peft_directory_in_float32(tmp_path: Path) -> None:
    km = write_adapter(tmp_path / "km", rank=4, fill=0.5)
    ke = write_ke(tmp_path / "ke", rank=2, fill=0.25, weights=(0.75, 0.5))
    target = tmp_path / "composites" / "kc"
    size = compose(ke, target, km=km)
    files = {path.name: path.stat().st_size for path in target.iterdir()}
    assert set(files) == {WEIGHTS, CONFIG, DIGESTS}
    verify_composite(target)
    assert size == sum(files.values())
    config = json.loads((target / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (6, 6, ["q_proj"])
    tensors = load_file(target / WEIGHTS)
    a, b = (tensors[f"{PREFIX}{LAYER}.{half}.weight"] for half in ("lora_A", "lora_B"))
    assert a.dtype == b.dtype == np.float32
    assert a.tolist() == [[0.5] * 8] * 4 + [[0.25] * 8] * 2
    assert b.tolist() == [[0.375] * 4 + [0.125] * 2] * 8


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, DIGESTS])
@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data[:-3] + b"xyz", None])
def test_a_composite_that_is_damaged_is_refused(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    compose(write_ke(tmp_path / "ke"), tmp_path / "kc")
    file = tmp_path / "kc" / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ArtifactError, match=name):
        verify_composite(tmp_path / "kc")


def test_a_composite_that_is_there_is_kept(tmp_path: Path) -> None:
    ke, target = write_ke(tmp_path / "ke"), tmp_path / "kc"
    compose(ke, target)
    made = (target / WEIGHTS).stat().st_ino
    compose(ke, target)
    assert (target / WEIGHTS).stat().st_ino == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kc", "ke"]


def test_a_composition_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ke = write_ke(tmp_path / "ke")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("km_registry.compose.save", full)
    with pytest.raises(OSError, match="no space"):
        compose(ke, tmp_path / "kc")
    assert [path.name for path in tmp_path.iterdir()] == ["ke"]


def test_the_name_is_of_the_contents() -> None:
    names = [composite_name("a" * 64, "b" * 64), composite_name("a" * 64, "c" * 64), composite_name("a" * 64)]
    assert len(set(names)) == 3
    assert composite_name("a" * 64, "b" * 64) == names[0]
    assert all(name.startswith("kc_") and len(name) == 23 for name in names)


def test_other_number_formats_are_read_exactly(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "km", rank=4, fill=0.3)
    weights = {name: values.astype(np.float16) for name, values in load_file(adapter / WEIGHTS).items()}
    save_file(weights, adapter / WEIGHTS)
    extractor = read_lora(adapter)
    scalars = dict.fromkeys(extractor.pairs, (0.5, 0.5))
    a, b = joined(None, extractor, scalars)[0][LAYER]
    assert (a.dtype, b.dtype) == (np.float32, np.float32)
    assert a[0, 0] == np.float32(np.float16(0.3))
    assert b[0, 0] == np.float32(np.float16(0.3)) * np.float32(0.5 * extractor.scale)
    brain = {"dtype": "BF16", "shape": [2], "data": np.array([0x3F80, 0xC000], dtype="<u2").tobytes()}
    assert as_float32(brain).tolist() == [1.0, -2.0]


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "km", rank=4)
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {"r": 2}))
    with pytest.raises(ArtifactError, match=f"no LoRA of rank 2 for layer {LAYER}"):
        read_lora(adapter)
    (adapter / CONFIG).write_text(json.dumps({"r": 4}))
    with pytest.raises(ArtifactError, match="no alpha"):
        read_lora(adapter)
    (adapter / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=f"lacks {WEIGHTS}"):
        read_lora(adapter)


def test_scalars_come_in_pairs(tmp_path: Path) -> None:
    ke = write_ke(tmp_path / "ke", weights=(0.75, 0.5))
    assert read_scalars(ke) == {LAYER: (0.75, 0.5)}
    save_file({f"{LAYER}.w_M": np.ones(1, np.float32)}, ke / COMPOSITION)
    with pytest.raises(ArtifactError, match="not two numbers for every layer"):
        read_scalars(ke)
