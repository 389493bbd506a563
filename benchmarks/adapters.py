"""Adapters of random weights, of a size that changes answers, where how good they are does not matter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from transformers import AutoConfig

from km_registry.adapter_files import COMPOSITION, CONFIG, PREFIX, WEIGHTS
from km_registry.artifacts import write_manifest
from km_registry.base_model import BaseModel
from km_registry.prompts import PROMPT_FORMAT
from km_registry.types import Document

RANK = 16


def random_adapter(directory: Path, model: Path, *, seed: int) -> Path:
    """An adapter of random weights in float16 for every linear layer, with a KE's scalars."""
    config = AutoConfig.from_pretrained(model)
    hidden, inner = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * config.head_dim
    shapes = {
        **{f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "o_proj")},
        **{f"self_attn.{name}": (kv, hidden) for name in ("k_proj", "v_proj")},
        **{f"mlp.{name}": (inner, hidden) for name in ("gate_proj", "up_proj")},
        "mlp.down_proj": (hidden, inner),
    }
    draw = np.random.default_rng(seed)
    tensors, scalars = {}, {}
    for number in range(config.num_hidden_layers):
        for module, (out, into) in shapes.items():
            layer = f"model.layers.{number}.{module}"
            a = draw.standard_normal((RANK, into), dtype=np.float32) / np.float32(into**0.5)
            b = draw.standard_normal((out, RANK), dtype=np.float32) * np.float32(0.05)
            tensors[f"{PREFIX}{layer}.lora_A.weight"] = a.astype(np.float16)
            tensors[f"{PREFIX}{layer}.lora_B.weight"] = b.astype(np.float16)
            for name in ("w_M", "w_E"):
                scalars[f"{layer}.{name}"] = draw.uniform(0.4, 1.0, size=1).astype(np.float32)
    directory.mkdir()
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    save_file(scalars, directory / COMPOSITION)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": sorted({module.split(".")[1] for module in shapes}),
    }
    (directory / CONFIG).write_text(json.dumps(described))
    return directory


def random_km(directory: Path, model: BaseModel, *, seed: int, document: Document | None = None) -> Path:
    """A KM of random weights, complete enough to be published for the document, if there is one."""
    random_adapter(directory, model.path, seed=seed)
    (directory / COMPOSITION).unlink()
    described = {
        "base_model": model.name,
        "base_fingerprint": model.fingerprint,
        "document_id": document.id if document else "none",
        "document_sha256": document.sha256 if document else "none",
        "title": document.title if document else "none",
        "prompt_format": PROMPT_FORMAT,
        "rank": RANK,
    }
    write_manifest(directory, described)
    return directory
