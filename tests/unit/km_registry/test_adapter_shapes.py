"""What an adapter from elsewhere is held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from km_registry.adapter_shapes import require_shapes
from km_registry.errors import ArtifactError

CONFIG = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}
LAYER = "base_model.model.model.layers.0.self_attn.k_proj"
PAIR = {f"{LAYER}.lora_A.weight": [3, 8], f"{LAYER}.lora_B.weight": [4, 3]}


def tensors(shapes: dict[str, list[int]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, {"shape": shape}) for name, shape in shapes.items()]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_pairs_that_fit_are_taken(model: Path) -> None:
    require_shapes(tensors(PAIR), model, 3)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({f"{LAYER}.lora_A.weight": [3, 8]}, "only one matrix"),
        (PAIR | {f"{LAYER}.lora_B.weight": [8, 3]}, "has the shape"),
        (PAIR | {f"{LAYER}.lora_A.weight": [4, 8]}, "has the shape"),
        ({name.replace("layers.0", "layers.1"): shape for name, shape in PAIR.items()}, "no place"),
        ({name.replace("k_proj", "router"): shape for name, shape in PAIR.items()}, "no place"),
        ({name.removeprefix("base_model."): shape for name, shape in PAIR.items()}, "no place"),
        ({f"{LAYER}.weight": [4, 8]}, "no place"),
    ],
)
def test_what_does_not_fit_is_refused(model: Path, shapes: dict[str, list[int]], says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        require_shapes(tensors(shapes), model, 3)
