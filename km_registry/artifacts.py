"""Files that hold knowledge: written whole or not at all, verified against a manifest, purged without rest.

A KM's directory holds `adapter_model.safetensors` and `adapter_config.json` (PEFT), `README.md` (its card)
and `manifest.json`, which names every other file with its SHA-256 and size. A KE's holds
`composition.safetensors` besides: for every adapted layer `<layer>.w_M` and `<layer>.w_E`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from km_registry.adapter_files import (
    COMPOSITION,
    CONFIG,
    PREFIX,
    WEIGHTS,
    Tensors,
    is_finite,
    read_json,
    read_tensors,
)
from km_registry.errors import ArtifactError
from km_registry.files import atomic_write, fsync, move_into_place, purge_dir, purge_file

__all__ = [
    "COMPOSITION",
    "CONFIG",
    "FORMAT",
    "MANIFEST",
    "WEIGHTS",
    "atomic_write",
    "digest",
    "move_into_place",
    "purge_dir",
    "purge_file",
    "verify",
    "verify_ke",
    "write_ke_manifest",
    "write_manifest",
]

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a directory of this kind must hold, what its digest is over, and what to do when it is damaged."""

    name: str
    fields: tuple[str, ...]
    files: frozenset[str]
    identity: tuple[str, ...]
    remedy: str


_KM = _Kind(
    name="km",
    fields=("base_fingerprint", "document_id", "document_sha256", "rank"),
    files=frozenset({WEIGHTS, CONFIG}),
    identity=("format", "kind", "base_fingerprint", "document_sha256", "files"),
    remedy="train the document again",
)
_KE = _Kind(
    name="ke",
    fields=(
        "name",
        "base_model",
        "base_fingerprint",
        "rank",
        "alpha",
        "prompt_format",
        "trained",
        "seed",
        "data",
        "licence",
        "metrics",
        "made",
    ),
    files=frozenset({WEIGHTS, CONFIG, COMPOSITION, "README.md"}),
    identity=("format", "kind", "base_fingerprint", "files"),
    remedy="train the KE again, or copy it anew",
)
_KINDS = {kind.name: kind for kind in (_KM, _KE)}
#: What an adapter's configuration must not say: it is not served, or makes composites inexact.
_PLAIN: tuple[tuple[str, Any], ...] = (
    ("use_dora", False),
    ("use_rslora", False),
    ("fan_in_fan_out", False),
    ("bias", "none"),
    ("modules_to_save", None),
    ("rank_pattern", {}),
    ("alpha_pattern", {}),
)


def write_manifest(directory: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Digest every file of a KM's directory and write `manifest.json`; the manifest.

    `fields` holds at least base_fingerprint, document_id, document_sha256 and rank. ArtifactError when one is
    missing or is not finite JSON.
    """
    return _write(directory, fields, _KM)


def write_ke_manifest(directory: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Digest every file of a KE's directory and write `manifest.json`; the manifest.

    `fields` holds at least name, base_model, base_fingerprint, rank, alpha, prompt_format, trained ("km+ke"
    or "ke": with or without KMs), seed, data, licence, metrics and made. ArtifactError when one is missing or
    is not finite JSON.
    """
    return _write(directory, fields, _KE)


def verify(
    directory: Path,
    *,
    base_fingerprint: str | None = None,
    max_rank: int | None = None,
    tensors: bool = True,
) -> dict[str, Any]:
    """Read a KM's directory and make sure that it is what was written; the manifest.

    ArtifactError when a file is missing, altered, truncated or extra, a tensor is not finite, the KM is for
    another base model than `base_fingerprint`, or its rank is above `max_rank`. Without `tensors` their
    numbers are not looked at: for files that were verified before.
    """
    manifest = _verify_manifest(directory, _KM, base_fingerprint)
    rank = _verify_config(directory, manifest, _KM)
    if max_rank is not None and rank > max_rank:
        raise ArtifactError(
            f"{directory.name} has rank {rank}, more than {max_rank}; raise KM_LORA_RANK or {_KM.remedy}"
        )
    if tensors:
        _verify_weights(read_tensors(directory / WEIGHTS, _KM.remedy), rank, _KM)
    return manifest


def verify_ke(
    directory: Path,
    *,
    base_fingerprint: str | None = None,
    max_rank: int | None = None,
    tensors: bool = True,
) -> dict[str, Any]:
    """The same for a KE. ArtifactError also when its layers and its composition's are not the same."""
    manifest = _verify_manifest(directory, _KE, base_fingerprint)
    rank = _verify_config(directory, manifest, _KE)
    if max_rank is not None and rank > max_rank:
        raise ArtifactError(
            f"{directory.name} has rank {rank}, more than {max_rank}; raise KM_KE_RANK, or train a KE of a "
            "lower rank"
        )
    if not tensors:
        return manifest
    weights = read_tensors(directory / WEIGHTS, _KE.remedy)
    _verify_weights(weights, rank, _KE)
    _verify_composition(_layers(weights), read_tensors(directory / COMPOSITION, _KE.remedy))
    return manifest


def digest(manifest: dict[str, Any]) -> str:
    """The content digest of a KM or KE (SHA-256, hex): over its files, its base, and a KM's document."""
    content = {name: manifest[name] for name in _KINDS[manifest["kind"]].identity}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write(directory: Path, fields: dict[str, Any], kind: _Kind) -> dict[str, Any]:
    if missing := [name for name in kind.fields if name not in fields]:
        raise ArtifactError(f"the manifest lacks {', '.join(missing)}; give these fields")
    files = {}
    for path in sorted(directory.iterdir()):
        if path.name == MANIFEST:
            continue
        _refuse_unless_plain(path)
        files[path.name] = {"sha256": _file_digest(path), "bytes": path.stat().st_size}
        fsync(path)
    manifest = {**fields, "format": FORMAT, "kind": kind.name, "files": files}
    try:
        data = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"the manifest is not finite JSON ({error}); give finite numbers only") from error
    atomic_write(directory / MANIFEST, data)
    return manifest


def _verify_manifest(directory: Path, kind: _Kind, base_fingerprint: str | None) -> dict[str, Any]:
    manifest = read_json(directory / MANIFEST, kind.remedy)
    if manifest.get("format") != FORMAT or manifest.get("kind") != kind.name:
        raise ArtifactError(f"{directory.name} is no {kind.name.upper()} of format {FORMAT}; {kind.remedy}")
    if missing := [name for name in (*kind.fields, "files") if name not in manifest]:
        raise ArtifactError(f"the manifest of {directory.name} lacks {', '.join(missing)}; {kind.remedy}")
    if lacking := sorted(kind.files - set(manifest["files"])):
        raise ArtifactError(f"the manifest of {directory.name} names no {', '.join(lacking)}; {kind.remedy}")
    _verify_files(directory, manifest["files"], kind)
    if base_fingerprint is not None and manifest["base_fingerprint"] != base_fingerprint:
        raise ArtifactError(
            f"{directory.name} is for the base model {manifest['base_fingerprint']}, not {base_fingerprint}; "
            f"serve that model or {kind.remedy}"
        )
    return manifest


def _verify_files(directory: Path, files: dict[str, dict[str, Any]], kind: _Kind) -> None:
    present = {path.name for path in directory.iterdir()}
    if missing := sorted(set(files) - present):
        raise ArtifactError(f"{directory.name} lacks {', '.join(missing)}; {kind.remedy}")
    if extra := sorted(present - set(files) - {MANIFEST}):
        raise ArtifactError(
            f"{directory.name} holds {', '.join(extra)}, unknown to its manifest; remove them"
        )
    for name, expected in files.items():
        path = directory / name
        _refuse_unless_plain(path)
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise ArtifactError(f"{path.name} has {size} bytes instead of {expected['bytes']}; {kind.remedy}")
        if _file_digest(path) != expected["sha256"]:
            raise ArtifactError(f"{path.name} was altered after it was written; {kind.remedy}")


def _verify_config(directory: Path, manifest: dict[str, Any], kind: _Kind) -> int:
    config = read_json(directory / CONFIG, kind.remedy)
    rank = manifest["rank"]
    if not isinstance(rank, int) or config.get("r") != rank:
        raise ArtifactError(f"{CONFIG} says rank {config.get('r')}, the manifest says {rank}; {kind.remedy}")
    if unserved := [name for name, plain in _PLAIN if config.get(name, plain) not in (plain, [], None)]:
        raise ArtifactError(
            f"{CONFIG} sets {', '.join(unserved)}, which is not served; {kind.remedy} without"
        )
    if kind is _KE and config.get("lora_alpha") != manifest["alpha"]:
        raise ArtifactError(
            f"{CONFIG} says alpha {config.get('lora_alpha')}, the manifest says {manifest['alpha']}; "
            f"{kind.remedy}"
        )
    return rank


def _verify_weights(tensors: Tensors, rank: int, kind: _Kind) -> None:
    for name, tensor in tensors:
        inner = {"lora_A": 0, "lora_B": -1}
        dimension = next((at for part, at in inner.items() if f".{part}." in name), None)
        if dimension is None or len(tensor["shape"]) != 2:
            raise ArtifactError(f"tensor {name} is no LoRA matrix; {kind.remedy}")
        if tensor["shape"][dimension] != rank:
            raise ArtifactError(
                f"tensor {name} has rank {tensor['shape'][dimension]}, not {rank}; {kind.remedy}"
            )
        _verify_finite(name, tensor, kind)


def _verify_composition(layers: set[str], tensors: Tensors) -> None:
    found = dict(tensors)
    expected = {f"{layer}.{weight}" for layer in layers for weight in ("w_M", "w_E")}
    if wrong := sorted(expected.symmetric_difference(found)):
        raise ArtifactError(
            f"{COMPOSITION} holds w_M and w_E of other layers than are adapted (first: {wrong[0]}); "
            f"{_KE.remedy}"
        )
    for name, tensor in tensors:
        if tensor["dtype"] != "F32" or list(tensor["shape"]) != [1]:
            raise ArtifactError(f"{name} in {COMPOSITION} is not one float32 number; {_KE.remedy}")
        _verify_finite(name, tensor, _KE)


def _layers(weights: Tensors) -> set[str]:
    """The layers that a KE adapts, each by a pair of matrices."""
    pairs: dict[str, set[str]] = {}
    for name, _ in weights:
        for part in ("lora_A", "lora_B"):
            if name.startswith(PREFIX) and name.endswith(f".{part}.weight"):
                pairs.setdefault(name[len(PREFIX) : -len(f".{part}.weight")], set()).add(part)
    whole = {layer for layer, parts in pairs.items() if len(parts) == 2}
    if 2 * len(whole) != len(weights):
        raise ArtifactError(
            f"{WEIGHTS} is not pairs of {PREFIX}<layer>.lora_A.weight and .lora_B.weight; {_KE.remedy}"
        )
    return whole


def _verify_finite(name: str, tensor: dict[str, Any], kind: _Kind) -> None:
    if not is_finite(tensor):
        raise ArtifactError(f"tensor {name} is not finite; {kind.remedy}, with a lower learning rate")


def _refuse_unless_plain(path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{path.name} is not a plain file; an artifact holds plain files only, remove it")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
