"""A trained KM as a PEFT directory: safetensors, configuration, a card, a manifest with digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from km_registry.artifacts import write_manifest
from km_registry.base_model import BaseModel
from km_registry.prompts import PROMPT_FORMAT
from km_registry.recipe import Recipe
from km_registry.types import Document
from trainer_worker.lora import TARGET_MODULES, Slot

_CARD = """---
library_name: peft
tags: [knowledge-module, lora]
---
# Knowledge Module

A LoRA adapter that holds one document, trained by Deep Context Distillation (KM Server).
Prompt format: `{prompt_format}`. Base model: `{base_model}` (fingerprint `{fingerprint}`).

| measure | value |
|---|---|
{rows}
"""
_CARD_ROWS = ("recovered", "kl_base", "kl_km", "heldout_loss", "steps", "best_step", "samples")


def export_km(
    slot: Slot,
    directory: Path,
    *,
    base: BaseModel,
    document: Document,
    recipe: Recipe,
    metrics: dict[str, Any],
    made: dict[str, Any],
) -> dict[str, Any]:
    """Write the adapter into an empty directory; returns the manifest. Weights are stored as float16.

    float16 keeps 11 bits where bfloat16 keeps 8; LoRA weights are far inside its range. `made` says on what
    it was made.
    """
    directory.mkdir(parents=True, exist_ok=False)
    # Not by `save_file`, which says a full disk as an error of its own, not as an OSError.
    weights = save(slot.peft_state(torch.float16), metadata={"format": "pt"})
    (directory / "adapter_model.safetensors").write_bytes(weights)
    config = peft_config(base.name, rank=recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout)
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    # The card is part of the content digest, so it tells only what the training decides: with times in it
    # every run of the same recipe would be another KM. The manifest is not, and tells them.
    rows = "\n".join(f"| {name} | {metrics[name]} |" for name in _CARD_ROWS if name in metrics)
    (directory / "README.md").write_text(
        _CARD.format(
            prompt_format=PROMPT_FORMAT, base_model=base.name, fingerprint=base.fingerprint, rows=rows
        )
    )
    return write_manifest(
        directory,
        {
            "kind": "km",
            "base_model": base.name,
            "base_fingerprint": base.fingerprint,
            "document_id": document.id,
            "document_sha256": document.sha256,
            "document_version": document.version,
            "title": document.title,
            "objective": recipe.objective,
            "recipe": recipe.model_dump(mode="json"),
            "seed": recipe.seed,
            "prompt_format": PROMPT_FORMAT,
            "rank": recipe.rank,
            "alpha": recipe.alpha,
            "target_modules": list(TARGET_MODULES),
            "made": made,
            "metrics": metrics,
        },
    )


def peft_config(base: str, *, rank: int, alpha: float, dropout: float) -> dict[str, Any]:
    """An adapter's `adapter_config.json`, as PEFT reads it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": list(TARGET_MODULES),
        "bias": "none",
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
