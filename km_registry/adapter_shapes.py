"""Which matrices an adapter of a base model has: what comes from elsewhere is held to that."""

from __future__ import annotations

import json
from pathlib import Path

from km_registry.adapter_files import PREFIX, Tensors
from km_registry.errors import ArtifactError

_REMEDY = "export it anew from a server with the same base model"


def require_shapes(tensors: Tensors, model: Path, rank: int) -> None:
    """Make sure that these are LoRA matrices of that rank for layers of the base model in this directory, in
    pairs, as an engine can load them. ArtifactError otherwise."""
    layers = _layers(json.loads((model / "config.json").read_bytes()))
    found: dict[str, set[str]] = {}
    for name, tensor in tensors:
        layer, _, part = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        if not name.startswith(PREFIX) or part not in ("A", "B") or layer not in layers:
            raise ArtifactError(f"the base model has no place for the tensor {name}; {_REMEDY}")
        out, into = layers[layer]
        expected = [rank, into] if part == "A" else [out, rank]
        if list(tensor["shape"]) != expected:
            raise ArtifactError(f"tensor {name} has the shape {tensor['shape']}, not {expected}; {_REMEDY}")
        found.setdefault(layer, set()).add(part)
    if alone := sorted(layer for layer, parts in found.items() if len(parts) != 2):
        raise ArtifactError(f"of {alone[0]} there is only one matrix; {_REMEDY}")


def _layers(config: dict[str, int]) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every linear layer of a Llama-family model."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    kv = config.get("num_key_value_heads", heads) * head
    shapes = {
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    count = config["num_hidden_layers"]
    return {f"model.layers.{at}.{name}": shape for at in range(count) for name, shape in shapes.items()}
