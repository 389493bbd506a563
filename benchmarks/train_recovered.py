"""Seconds until a training has recovered 0.8 of what the context tells, held out."""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.training import Bench, peak_rss_gb
from trainer_worker.lora import open_slot
from trainer_worker.pairs import pairs_of
from trainer_worker.runs import Run
from trainer_worker.train import train

_WANTED = 0.8


def measure_recovered(bench: Bench, setting: str, steps: int | None) -> dict[str, Any]:
    """A full training by the trainer's own loop, teacher and evaluations included."""
    document = bench.document(setting, steps=steps)
    recipe, examples = document.recipe, document.examples
    model = bench.student()
    slot = open_slot(model, rank=recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout, seed=recipe.seed)
    began = time.monotonic()
    store = bench.targets(model, [*examples.fit, *examples.heldout])
    pairs = pairs_of([*examples.fit, *examples.heldout], store)
    fit, heldout = pairs[: len(examples.fit)], pairs[len(examples.fit) :]
    times = {0: time.monotonic() - began}

    def told(step: int, loss: float) -> None:
        times[step] = time.monotonic() - began
        if step % 10 == 0:
            print(f"  step {step}/{document.steps}: {times[step]:.0f} s, loss {loss:.3f}", file=sys.stderr)

    (ended,) = train(model, [Run(slot, fit, heldout, recipe, document.steps, on_step=told)])
    if ended.error is not None:
        raise ended.error
    looks = [(look.step, look.recovered or 0.0) for look in ended.state.evaluations]
    reached = next((step for step, share in looks if share >= _WANTED), None)
    return {
        "time_to_recovered_80": {
            "seconds": None if reached is None else round(times[reached], 1),
            "step": reached,
            "steps": document.steps,
            "teacher_seconds": round(times[0], 1),
            "training_seconds": round(times[document.steps] - times[0], 1),
            "recovered": [[step, share] for step, share in looks],
            "peak_rss_gb": peak_rss_gb(),
        }
    }
