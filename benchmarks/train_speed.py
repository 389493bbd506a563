"""Seconds and loss of both trainings, one step of each in turn."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks.reference import Reference
from benchmarks.result import RESULTS
from benchmarks.training import (
    Bench,
    Document,
    matmul_gflops,
    peak_rss_gb,
    step_flops,
    timed,
)
from km_registry.recipe import Recipe
from trainer_worker.distillation import Part, loss_sums
from trainer_worker.lora import Slot, open_slot
from trainer_worker.pairs import BatchStream, Pair, pairs_of
from trainer_worker.runs import lr_factor

#: Steps at the end whose losses are averaged: one batch's says little.
_LAST = 10


class Ours:
    """A training as the trainer's loop makes it, step by step from outside."""

    def __init__(self, model: Any, slot: Slot, recipe: Recipe, steps: int) -> None:
        self.model, self.slot, self._recipe, self._steps = model, slot, recipe, steps
        self._step = 0
        self.optimizer = torch.optim.AdamW(
            slot.parameters(), lr=recipe.learning_rate, weight_decay=0.0, fused=True
        )

    def step(self, batch: list[Pair]) -> float:
        """One step; its loss."""
        recipe = self._recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * lr_factor(self._step, self._steps, recipe.warmup)
        self._step += 1
        self.model.train()
        self.slot.seed_dropout(self._step)
        targets = sum(len(pair.example.target) for pair in batch)
        (loss,) = loss_sums(self.model, [Part(self.slot, batch, recipe)])
        self.optimizer.zero_grad(set_to_none=True)
        (loss / targets).backward()
        torch.nn.utils.clip_grad_norm_(self.slot.parameters(), recipe.clip)
        self.optimizer.step()
        return float(loss.detach()) / targets

    def skip(self, steps: int) -> None:
        """Go on behind so many steps."""
        self._step = steps


def measure_speed(bench: Bench, setting: str, steps: int, seconds: float | None) -> dict[str, Any]:
    """Both trainings over the same `steps` batches from the same first weights."""
    document = bench.document(setting, steps=steps)
    recipe = document.recipe
    model = bench.student()
    slot = open_slot(model, rank=recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout, seed=recipe.seed)
    began = time.perf_counter()
    pairs = pairs_of(
        document.examples.fit,
        bench.targets(model, document.examples.fit),
    )
    teacher_seconds = timed(model, began)
    print(f"  teacher {teacher_seconds:.1f} s, {len(pairs)} samples", file=sys.stderr)
    stream = BatchStream(pairs, recipe.batch_tokens, recipe.seed)
    batches = [next(stream) for _ in range(steps)]
    ours = Ours(model, slot, recipe, steps)
    largest = max(batches, key=lambda batch: sum(len(pair.example.student_input) for pair in batch))
    loss_sums(model, [Part(slot, largest, recipe)])[0].backward()
    peak = peak_rss_gb()
    reference = Reference(bench.load(), recipe, steps, slot.peft_state(torch.float32))
    record = _alternate(ours, reference, batches, RESULTS / f".train-{setting}.pt", seconds)
    return _figures(document, steps, teacher_seconds, record, peak)


def _alternate(
    ours: Ours, reference: Reference, batches: list[list[Pair]], state: Path, seconds: float | None
) -> dict[str, list[float]]:
    """Losses and seconds of every step. The state's file is there while steps are left."""
    record: dict[str, list[float]] = {
        name: [] for name in ("ours", "reference", "ours_loss", "reference_loss", "flops", "ceiling")
    }
    if state.exists():
        record = _load(ours, reference, state, len(batches), record)
    began = time.monotonic()
    for batch in batches[len(record["ours"]) :]:
        if seconds is not None and time.monotonic() - began > seconds:
            break
        examples = [pair.example for pair in batch]
        record["ceiling"].append(matmul_gflops(ours.model))
        for name, step in (
            ("reference", lambda: reference.step(examples)),  # noqa: B023  called at once
            ("ours", lambda: ours.step(batch)),  # noqa: B023
        ):
            at = time.perf_counter()
            record[f"{name}_loss"].append(step())
            record[name].append(timed(ours.model, at))
        record["flops"].append(step_flops(ours.model, ours.slot, examples))
        print(
            f"  step {len(record['ours'])}/{len(batches)}: reference {record['reference'][-1]:.2f} s "
            f"(loss {record['reference_loss'][-1]:.4f}), ours {record['ours'][-1]:.2f} s "
            f"(loss {record['ours_loss'][-1]:.4f})",
            file=sys.stderr,
        )
    if len(record["ours"]) < len(batches):
        _save(ours, reference, state, len(batches), record)
    else:
        state.unlink(missing_ok=True)
    return record


def _save(ours: Ours, reference: Reference, state: Path, steps: int, record: dict[str, list[float]]) -> None:
    torch.save(
        {
            "steps": steps,
            "record": record,
            "ours": ours.slot.snapshot(),
            "ours_optimizer": ours.optimizer.state_dict(),
            "reference": [parameter.detach() for parameter in reference.parameters],
            "reference_optimizer": reference.optimizer.state_dict(),
        },
        state,
    )


def _load(
    ours: Ours, reference: Reference, state: Path, steps: int, fresh: dict[str, list[float]]
) -> dict[str, list[float]]:
    found = torch.load(state, weights_only=True)
    if found["steps"] != steps:
        return fresh
    ours.slot.restore(found["ours"])
    ours.optimizer.load_state_dict(found["ours_optimizer"])
    with torch.no_grad():
        for parameter, tensor in zip(reference.parameters, found["reference"], strict=True):
            parameter.copy_(tensor)
    reference.optimizer.load_state_dict(found["reference_optimizer"])
    record: dict[str, list[float]] = found["record"]
    ours.skip(len(record["ours"]))
    reference.skip(len(record["ours"]))
    return record


def _figures(
    document: Document, steps: int, teacher_seconds: float, record: dict[str, list[float]], peak: float
) -> dict[str, Any]:
    done = len(record["ours"])
    ours, reference = sum(record["ours"]), sum(record["reference"])
    # Each step against the ceiling of its own moment: on a shared machine both rise and fall.
    shares = [
        flops / seconds / 1e9 / ceiling
        for flops, seconds, ceiling in zip(record["flops"], record["ours"], record["ceiling"], strict=True)
    ]
    # A training that was stopped has not drawn all it has targets for.
    teacher = teacher_seconds * done / steps
    return {
        "doc_tokens": document.tokens,
        "chunk_tokens": document.recipe.chunk_tokens,
        "samples": len(document.examples.fit),
        "steps": done,
        "steps_of_full_training": document.recipe.steps_for(document.tokens),
        "reference_seconds": round(reference, 2),
        "ours_seconds": round(teacher + ours, 2),
        "speedup": round(reference / (teacher + ours), 2),
        "speedup_of_a_step": round(
            median(r / o for r, o in zip(record["reference"], record["ours"], strict=True)), 2
        )
        if done
        else math.nan,
        "loss_reference": round(mean(record["reference_loss"][-_LAST:]), 4),
        "loss_ours": round(mean(record["ours_loss"][-_LAST:]), 4),
        "teacher_seconds": round(teacher, 2),
        "train_seconds": round(ours, 2),
        "step_gflop": round(mean(record["flops"]) / 1e9, 1),
        "matmul_ceiling_gflops": round(max(record["ceiling"]), 1),
        "achieved_gflops": round(sum(record["flops"]) / ours / 1e9, 1),
        "achieved_share": round(median(shares), 3),
        "peak_rss_gb": peak,
    }
