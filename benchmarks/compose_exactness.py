"""How exact a composite is: its logits in float32 against both LoRAs applied apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from km_registry.compose import Lora, read_lora, read_scalars
from km_registry.prompts import answer_messages, encode


def logits(
    model: Path, kms: Sequence[Path], ke: Path, composites: Sequence[Path], questions: Sequence[str]
) -> dict[str, Any]:
    """The largest difference of any logit, relative to the largest logit, over the questions' prompts.

    The KMs take turns. As a yardstick, also the difference that the KE makes to the KM alone.
    """
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    extractor, scalars = read_lora(ke), read_scalars(ke)
    worst = effect = 0.0
    for i, question in enumerate(questions):
        km, composite = read_lora(kms[i % len(kms)]), read_lora(composites[i % len(kms)])
        both = [
            (km, {layer: scalars[layer][0] for layer in km.pairs}),
            (extractor, {layer: scalars[layer][1] for layer in extractor.pairs}),
        ]
        ids = torch.tensor([encode(tokenizer, answer_messages(question))])
        apart = _logits(base, ids, both)
        together = _logits(base, ids, [(composite, dict.fromkeys(composite.pairs, 1.0))])
        km_only = _logits(base, ids, [(km, dict.fromkeys(km.pairs, 1.0))])
        largest = float(apart.abs().max())
        worst = max(worst, float((together - apart).abs().max()) / largest)
        effect = max(effect, float((km_only - apart).abs().max()) / largest)
    return {"logits_max_relative_difference": worst, "ke_max_relative_effect": round(effect, 4)}


def _logits(base: Any, ids: Tensor, loras: Sequence[tuple[Lora, dict[str, float]]]) -> Tensor:
    with torch.inference_mode(), _applied(base, loras):
        found: Tensor = base(input_ids=ids).logits[0]
    return found


@contextmanager
def _applied(base: nn.Module, loras: Sequence[tuple[Lora, dict[str, float]]]) -> Iterator[None]:
    """Add every LoRA's delta to the outputs of its layers, each by itself."""
    handles = []
    for lora, weights in loras:
        for layer, (a, b) in lora.pairs.items():
            a_t, b_t = torch.from_numpy(a.copy()).float(), torch.from_numpy(b.copy()).float()
            hook = _adding(a_t, b_t, weights[layer] * lora.scale)
            handles.append(base.get_submodule(layer).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(a: Tensor, b: Tensor, factor: float) -> Callable[..., Tensor]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + factor * ((inputs[0] @ a.t()) @ b.t())

    return hook
