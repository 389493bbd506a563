"""Four documents that train in one group against one alone."""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

from benchmarks.training import Bench
from trainer_worker.lora import open_slot
from trainer_worker.pairs import pairs_of
from trainer_worker.runs import Run
from trainer_worker.train import train

_ROUNDS = 3


def measure_group(bench: Bench, setting: str, steps: int) -> dict[str, Any]:
    """The ratio of their seconds, teacher included, in alternation."""
    model = bench.student()
    ratios = []
    for number in range(_ROUNDS):
        one = _train(bench, model, setting, [number], steps)
        four = _train(bench, model, setting, [4 * number + offset for offset in range(4)], steps)
        ratios.append(four / one)
        print(f"  one {one:.1f} s, four {four:.1f} s, ratio {ratios[-1]:.2f}", file=sys.stderr)
    return {"group_of_four_ratio": round(median(ratios), 2), "group_steps": steps}


def _train(bench: Bench, model: Any, setting: str, seeds: list[int], steps: int) -> float:
    runs, documents = [], [bench.document(setting, seed=seed, steps=steps) for seed in seeds]
    began = time.monotonic()
    for seed, document in zip(seeds, documents, strict=True):
        recipe = document.recipe.model_copy(update={"evaluations": 1, "seed": seed})
        examples = [*document.examples.fit, *document.examples.heldout]
        pairs = pairs_of(examples, bench.targets(model, examples))
        slot = open_slot(model, rank=recipe.rank, alpha=recipe.alpha, seed=seed)
        fit = len(document.examples.fit)
        runs.append(Run(slot, pairs[:fit], pairs[fit:], recipe, steps))
    for ended in train(model, runs):
        if ended.error is not None:
            raise ended.error
        ended.run.slot.close()
    return time.monotonic() - began
