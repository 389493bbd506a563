"""A trained KE as a directory: its LoRA under PEFT's names, its scalars, a card, a manifest with digests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from km_registry.artifacts import COMPOSITION, CONFIG, WEIGHTS, write_ke_manifest
from km_registry.prompts import PROMPT_FORMAT
from trainer_worker.export import peft_config
from trainer_worker.extractor import KETraining
from trainer_worker.lora import TARGET_MODULES
from trainer_worker.resident import Resident

_CARD = """---
library_name: peft
tags: [knowledge-extractor, lora]
license: {licence}
---
# Knowledge Extractor {name}

Trained by KM Server: a LoRA adapter and, for every adapted layer, two scalars (w_M, w_E) that combine it with
the Knowledge Module of a document: w_M·B_M·A_M + w_E·B_E·A_E. It holds how to answer, and no document.

Base model: `{base_model}` (fingerprint `{fingerprint}`). Prompt format: `{prompt_format}`.
Trained on: {data}. Trained {beside}.

{command}

| held out, nats per answer token | closed book | with passages |
|---|---|---|
{rows}

Trained on {questions} questions of {documents} documents; {heldout_documents} others were held out.
Scalars: w_M {w_m:.3f} and w_E {w_e:.3f} on the mean over layers.
"""


def export_ke(
    training: KETraining,
    directory: Path,
    *,
    resident: Resident,
    name: str,
    metrics: dict[str, Any],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write the KE into `directory`, whole or not at all; its manifest. The LoRA is stored as float16, its
    scalars as float32. `about` says `data`, `licence` and `command`."""
    staged = directory.with_name(f".{directory.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    recipe, base = training.recipe, resident.base
    # Not by `save_file`, which says a full disk as an error of its own, not as an OSError.
    weights = save(training.ke.peft_state(torch.float16), metadata={"format": "pt"})
    (staged / WEIGHTS).write_bytes(weights)
    (staged / COMPOSITION).write_bytes(save(training.scalars.state()))
    config = peft_config(base.name, rank=recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout)
    (staged / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (staged / "README.md").write_text(_card(training, resident, name, metrics, about), encoding="utf-8")
    fields = {
        "name": name,
        "base_model": base.name,
        "base_fingerprint": base.fingerprint,
        "prompt_format": PROMPT_FORMAT,
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        "target_modules": list(TARGET_MODULES),
        "trained": recipe.trained,
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "data": about.get("data", "not said"),
        "licence": about.get("licence", "not said"),
        "made": resident.made,
        "metrics": metrics,
    }
    manifest = write_ke_manifest(staged, fields)
    staged.rename(directory)
    return manifest


def _card(
    training: KETraining, resident: Resident, name: str, metrics: dict[str, Any], about: dict[str, Any]
) -> str:
    looks = [("before training", training.looks[0]), (f"after {training.best.step} steps", training.best)]
    rows = "\n".join(
        f"| {when} | {look.nll.get('closed', '–')} | {look.nll.get('passages', '–')} |"
        for when, look in looks
    )
    w_m, w_e = training.scalars.values_L2.detach().mean(0).tolist()
    command = about.get("command")
    return _CARD.format(
        name=name,
        licence=about.get("licence", "other"),
        base_model=resident.base.name,
        fingerprint=resident.base.fingerprint,
        prompt_format=PROMPT_FORMAT,
        data=about.get("data", "not said"),
        beside="beside each document's KM" if training.recipe.trained == "km+ke" else "without KMs",
        command=f"Made by: `{command}`" if command else "",
        rows=rows,
        w_m=w_m,
        w_e=w_e,
        **{key: metrics[key] for key in ("questions", "documents", "heldout_documents")},
    )
