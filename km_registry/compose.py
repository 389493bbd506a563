"""Composition: a KM and a KE as one ordinary LoRA, exactly.

For every adapted layer A = [A_M ; A_E] and B = [w_M·s_M·B_M , w_E·s_E·B_E] with s = alpha / rank, stored with
alpha = rank, so that B·A is w_M·s_M·B_M·A_M + w_E·s_E·B_E·A_E. In float32: whoever applies it rounds once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from base64 import b32encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from km_registry.adapter_files import (
    COMPOSITION,
    CONFIG,
    PREFIX,
    WEIGHTS,
    as_float32,
    as_stored,
    read_json,
    read_tensors,
)
from km_registry.errors import ArtifactError
from km_registry.files import fsync, move_into_place, purge_dir

#: Part of a composite's name: another way to compose is another composite.
FORMAT = 2
_LENGTH = 20
#: SHA-256 of a composite's other files.
DIGESTS = "digests.json"
_REMADE = "ask again: it is made anew"
_REMEDY = "register the KE anew, or train the document again"

#: Of any floating-point format in an adapter, of float32 in a composite.
Matrix = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA in memory. `pairs` holds A (rank, in) and B (out, rank) by layer; `scale` is alpha/rank."""

    pairs: Mapping[str, tuple[Matrix, Matrix]]
    rank: int
    scale: float
    base: str


def composite_name(ke_digest: str, km_digest: str | None = None) -> str:
    """What the composite of these contents is called; without a KM, what a KE alone is called when served."""
    content = f"{FORMAT} {km_digest or 'none'} {ke_digest}"
    encoded = b32encode(hashlib.sha256(content.encode()).digest()).decode().lower()
    return f"kc_{encoded[:_LENGTH]}"


def compose(ke: Path, target: Path, *, km: Path | None = None) -> int:
    """Write the composite of a KM and a KE, or of a KE alone, as a PEFT directory; its bytes.

    `target` is there whole or not at all; one that is there already is kept. The directories were verified
    when they came into the registry. ArtifactError when a file is damaged, or their layers do not fit.
    """
    extractor = read_lora(ke)
    pairs, rank = joined(read_lora(km) if km else None, extractor, read_scalars(ke))
    staged = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    staged.mkdir(mode=0o700, parents=True)
    try:
        size = _write(staged, pairs, rank, extractor.base)
        if not target.is_dir():
            move_into_place(staged, target)
    finally:
        purge_dir(staged)
    return size


def joined(
    km: Lora | None, ke: Lora, scalars: Mapping[str, tuple[float, float]]
) -> tuple[dict[str, tuple[Matrix, Matrix]], int]:
    """The pairs of the composite and its rank, which is the sum of both; `scalars` are (w_M, w_E) by layer.

    A layer that only the KM adapts is adapted as by the KM alone. ArtifactError when a layer has not the same
    shape in both, or the scalars are of other layers than the KE's.
    """
    if set(scalars) != set(ke.pairs):
        raise ArtifactError(f"{COMPOSITION} tells of other layers than the KE adapts; {_REMEDY}")
    rank = ke.rank + (km.rank if km else 0)
    pairs = {}
    for layer in sorted({*ke.pairs, *(km.pairs if km else ())}):
        parts = []
        if km and layer in km.pairs:
            weight = scalars[layer][0] if layer in ke.pairs else 1.0
            parts.append((*km.pairs[layer], weight * km.scale))
        if layer in ke.pairs:
            parts.append((*ke.pairs[layer], scalars[layer][1] * ke.scale))
        if len({(a.shape[1], b.shape[0]) for a, b, _ in parts}) > 1:
            raise ArtifactError(f"layer {layer} has another shape in the KM than in the KE; {_REMEDY}")
        pairs[layer] = _stacked(parts, rank)
    return pairs, rank


def _stacked(parts: list[tuple[Matrix, Matrix, float]], rank: int) -> tuple[Matrix, Matrix]:
    """One pair of this rank, in float32, out of several, each with a factor on its B; what is left over is
    zero."""
    a = np.empty((rank, parts[0][0].shape[1]), dtype=np.float32)
    b = np.empty((parts[0][1].shape[0], rank), dtype=np.float32)
    at = 0
    for part_a, part_b, factor in parts:
        end = at + part_a.shape[0]
        a[at:end] = part_a
        np.multiply(part_b, np.float32(factor), out=b[:, at:end])
        at = end
    a[at:] = b[:, at:] = 0
    return a, b


def read_lora(directory: Path) -> Lora:
    """The LoRA in a PEFT directory. ArtifactError when it is not one."""
    config = read_json(directory / CONFIG, _REMEDY)
    halves: dict[str, dict[str, Matrix]] = {}
    for name, tensor in read_tensors(directory / WEIGHTS, _REMEDY):
        layer, _, half = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        # Widened where it is multiplied: a pass over all numbers less.
        halves.setdefault(layer, {})[half] = as_stored(tensor)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ArtifactError(f"{CONFIG} of {directory.name} has no rank or no alpha; {_REMEDY}")
    for layer, pair in halves.items():
        if set(pair) != {"lora_A", "lora_B"} or not _fits(pair["lora_A"], pair["lora_B"], rank):
            raise ArtifactError(f"{directory.name} has no LoRA of rank {rank} for layer {layer}; {_REMEDY}")
    pairs = {layer: (pair["lora_A"], pair["lora_B"]) for layer, pair in halves.items()}
    return Lora(pairs, rank, alpha / rank, str(config.get("base_model_name_or_path", "")))


def read_scalars(ke: Path) -> dict[str, tuple[float, float]]:
    """The scalars (w_M, w_E) of every layer of a KE. ArtifactError when one of the two is missing."""
    found = {name: as_float32(tensor) for name, tensor in read_tensors(ke / COMPOSITION, _REMEDY)}
    layers = {name.rpartition(".")[0] for name in found}
    try:
        return {
            layer: (found[f"{layer}.w_M"].item(), found[f"{layer}.w_E"].item()) for layer in sorted(layers)
        }
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"{COMPOSITION} is not two numbers for every layer ({error}); {_REMEDY}"
        ) from error


def _fits(a: Matrix, b: Matrix, rank: int) -> bool:
    return a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] == rank


def _write(directory: Path, pairs: Mapping[str, tuple[Matrix, Matrix]], rank: int, base: str) -> int:
    tensors = {}
    for layer, (a, b) in pairs.items():
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = a
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = b
    # Not by `save_file`, which says a full disk as an error of its own, not as an OSError.
    (directory / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in pairs}),
        "bias": "none",
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    files = [directory / name for name in (WEIGHTS, CONFIG)]
    digests = {path.name: _digest(path) for path in files}
    (directory / DIGESTS).write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n")
    files.append(directory / DIGESTS)
    for path in files:
        fsync(path)
    return sum(path.stat().st_size for path in files)


def verify_composite(directory: Path) -> None:
    """Make sure that a composite's files are what was written. ArtifactError when they are not."""
    written = read_json(directory / DIGESTS, _REMADE)
    for name in (WEIGHTS, CONFIG):
        try:
            found = _digest(directory / name)
        except FileNotFoundError:
            raise ArtifactError(f"the composite {directory.name} lacks {name}; {_REMADE}") from None
        if found != written.get(name):
            raise ArtifactError(f"{name} of the composite {directory.name} was altered; {_REMADE}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
