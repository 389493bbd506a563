"""What tests of several packages need to make: small, valid KMs and KEs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from km_registry.artifacts import write_ke_manifest, write_manifest
from km_registry.prompts import PROMPT_FORMAT
from km_registry.registry import Registry
from km_registry.types import KM, Document, Job, Principal

BASE_FINGERPRINT = "f" * 64


def write_adapter(directory: Path, *, rank: int = 4, fill: float = 0.5) -> Path:
    """A PEFT directory without a manifest: one LoRA pair for one module of 8 features."""
    directory.mkdir(parents=True)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{prefix}.lora_A.weight": np.full((rank, 8), fill, dtype=np.float32),
        f"{prefix}.lora_B.weight": np.full((8, rank), fill, dtype=np.float32),
    }
    (directory / "adapter_model.safetensors").write_bytes(save(tensors))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "README.md").write_text("A KM made by a test.\n")
    return directory


def write_km(directory: Path, document: Document, *, rank: int = 4, **fields: Any) -> Path:
    """A complete KM of the document."""
    write_adapter(directory, rank=rank)
    described = {
        "base_model": "test",
        "base_fingerprint": BASE_FINGERPRINT,
        "document_id": document.id,
        "document_sha256": document.sha256,
        "title": document.title,
        "prompt_format": PROMPT_FORMAT,
        "rank": rank,
    }
    write_manifest(directory, described | fields)
    return directory


def write_ke(
    directory: Path,
    *,
    rank: int = 4,
    fill: float = 0.25,
    weights: tuple[float, float] = (0.75, 0.5),
    **fields: Any,
) -> Path:
    """A complete KE for the module that KMs of tests adapt, with the scalars `weights` (w_M, w_E)."""
    write_adapter(directory, rank=rank, fill=fill)
    return complete_ke(directory, ["model.layers.0.self_attn.q_proj"], rank=rank, weights=weights, **fields)


def complete_ke(
    directory: Path,
    layers: Sequence[str],
    *,
    rank: int,
    weights: tuple[float, float] | Mapping[str, tuple[float, float]] = (0.75, 0.5),
    **fields: Any,
) -> Path:
    """Make the adapter of these layers in the directory a KE; `weights` are every layer's, or by layer."""
    scalars = {
        f"{layer}.{name}": np.array([value], dtype=np.float32)
        for layer in layers
        for name, value in zip(
            ("w_M", "w_E"), weights[layer] if isinstance(weights, Mapping) else weights, strict=True
        )
    }
    (directory / "composition.safetensors").write_bytes(save(scalars))
    (directory / "README.md").write_text("A KE made by a test.\n")
    described = {
        "name": "answers",
        "base_model": "test",
        "base_fingerprint": BASE_FINGERPRINT,
        "rank": rank,
        "alpha": rank,
        "prompt_format": PROMPT_FORMAT,
        "trained": "km+ke",
        "seed": 0,
        "data": "made up",
        "licence": "CC0-1.0",
        "metrics": {"answer_nll": 1.5},
        "made": {},
    }
    write_ke_manifest(directory, described | fields)
    return directory


def stage_km(registry: Registry, document: Document, job: Job) -> Path:
    """A complete KM of the document, staged in the job's work directory."""
    return write_km(registry.work_dir(job.id) / f"staged-{job.attempt}", document)


@contextmanager
def away(share: Path) -> Iterator[None]:
    """A mounted directory that is a store refuses to be read and to be written."""
    elsewhere = share.with_name("unreachable")
    share.rename(elsewhere)
    share.touch()
    try:
        yield
    finally:
        share.unlink()
        elsewhere.rename(share)


def trained(registry: Registry, owner: Principal, text: str) -> KM:
    """The KM of a new document, as a worker publishes it."""
    document, job, _ = registry.add_document(owner, "Harbour", text)
    claimed = registry.claim(job.id)
    assert claimed is not None
    return registry.publish(job.id, claimed.attempt, stage_km(registry, document, claimed), {})
