"""Adapters that fit a real model's layers, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK = 16


def write_llama_adapter(directory: Path, config: Any, *, seed: int, rank: int = RANK) -> list[str]:
    """A PEFT directory with random weights for every linear layer of a Llama-like model; these layers."""
    hidden, inner = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors, layers = {}, []
    for layer in range(config.num_hidden_layers):
        for module, (out, into) in shapes.items():
            layers.append(f"model.layers.{layer}.{module}")
            name = f"base_model.model.{layers[-1]}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, into, generator=generator) / into**0.5
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.6 / rank**0.5
    save_file(tensors, directory / "adapter_model.safetensors")
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [module.split(".")[1] for module in shapes],
        "modules_to_save": None,
    }
    (directory / "adapter_config.json").write_text(json.dumps(description))
    return layers
