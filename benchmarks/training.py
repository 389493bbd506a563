"""What the parts of the training benchmark share: settings, documents, examples, floor, ceiling."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.invented import invented
from km_registry.chunking import chunks
from km_registry.recipe import Recipe
from trainer_worker.config import TrainerSettings
from trainer_worker.examples import Example, Source
from trainer_worker.lora import Slot
from trainer_worker.objectives import ExampleSet, example_set
from trainer_worker.packing import packed_tokens
from trainer_worker.publication import peak_rss_bytes
from trainer_worker.resident import Resident
from trainer_worker.synthesis import recall, repeat
from trainer_worker.targets import TargetStore
from trainer_worker.teacher import compute_targets

#: By name: tokens of the document, recipe.
SETTINGS: dict[str, tuple[int, Recipe]] = {
    "600": (600, Recipe(kinds={"recall": 1.0, "repeat": 1.0}, chunk_tokens=512, evaluations=12)),
    "5000": (5000, Recipe(kinds={"recall": 1.0, "repeat": 1.0}, chunk_tokens=2048, evaluations=24)),
}


@dataclass(frozen=True, slots=True)
class Document:
    """An invented document in examples, of which so many steps would draw."""

    tokens: int
    examples: ExampleSet
    recipe: Recipe
    steps: int


class Bench:
    """The base model as trainings have it, and the documents."""

    def __init__(self) -> None:
        self.resident = Resident.open(TrainerSettings())

    def load(self) -> Any:
        """The base model, frozen but without LoraLinear layers."""
        return self.resident.load_base()

    def student(self) -> Any:
        """The base model with LoraLinear layers."""
        return self.resident.load_model()

    def targets(self, model: Any, examples: Sequence[Example]) -> TargetStore:
        """What the teacher says of the examples, in passes of the size that trainings take."""
        return compute_targets(model, examples, batch_tokens=self.resident.teacher_batch_tokens)

    def document(self, setting: str, *, seed: int = 0, steps: int | None = None) -> Document:
        """The setting's document of that seed; `steps` None: as many as its recipe takes."""
        return self.made_of(
            setting, *invented(self._count, tokens=SETTINGS[setting][0], seed=seed), steps=steps
        )

    def next_version(self, setting: str, *, changed: float, steps: int) -> Document:
        """The setting's document with that share of its sentences, every so many, replaced by others."""
        tokens = SETTINGS[setting][0]
        title, text = invented(self._count, tokens=tokens, seed=0)
        _, other = invented(self._count, tokens=tokens, seed=1)
        old, new = _sentences(text), _sentences(other)
        every = round(1 / changed)
        kept = [new[n] if n % every == 0 and n < len(new) else one for n, one in enumerate(old)]
        return self.made_of(setting, title, " ".join(kept), steps=steps)

    def made_of(self, setting: str, title: str, text: str, *, steps: int | None) -> Document:
        """A text under the setting's recipe."""
        recipe = SETTINGS[setting][1]
        cut = chunks(text, self._count, chunk_tokens=recipe.chunk_tokens)
        source = Source(title, text, tuple(chunk.text for chunk in cut))
        whole = recipe.steps_for(self._count(text))
        examples = example_set(
            source,
            [*recall(source, recipe.seed), *repeat(source)],
            [],
            recipe,
            self.resident.tokenizer,
            context_tokens=self.resident.context_tokens,
            steps=steps or whole,
        )
        return Document(self._count(text), examples, recipe, steps or whole)

    def _count(self, text: str) -> int:
        return len(self.resident.tokenizer.encode(text, add_special_tokens=False))


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


def step_flops(model: Any, slot: Slot, batch: list[Example]) -> float:
    """The floor of a training step, in floating-point operations.

    Two for each weight and token forward and two for the input's gradient; six for each LoRA weight and token
    (forward, its input's and its own gradient); four for each head weight and target position (the student's
    logits, and the gradient through them).
    """
    head = model.lm_head.weight.numel()
    body = sum(p.numel() for p in model.model.layers.parameters())
    tokens, targets = packed_tokens(batch), sum(len(one.target) for one in batch)
    return 4.0 * body * tokens + 6.0 * slot.flat.numel() * tokens + 4.0 * head * targets


def matmul_gflops(model: Any, columns: int = 192) -> float:
    """The machine's matrix product now, in GFLOP/s: the best of some tries of a block's largest products."""
    hidden, inner = model.config.hidden_size, model.config.intermediate_size
    best = 0.0
    for shape in ((inner, hidden), (hidden, inner), (hidden, hidden)):
        weight = torch.randn(shape, dtype=model.dtype, device=model.device)
        x = torch.randn(shape[1], columns, dtype=model.dtype, device=model.device)
        for _ in range(8):
            began = time.perf_counter()
            weight @ x
            _wait(model)
            best = max(best, 2 * weight.numel() * columns / (time.perf_counter() - began) / 1e9)
    return best


def timed(model: Any, began: float) -> float:
    """Seconds since, all work on the device done."""
    _wait(model)
    return time.perf_counter() - began


def peak_rss_gb() -> float:
    """The most memory this process has had."""
    return round(peak_rss_bytes() / 2**30, 2)


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
