"""A new version of a document: trained from the KM of the version before, and from scratch."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.training import Bench, Document
from trainer_worker.lora import Slot, open_slot
from trainer_worker.pairs import pairs_of
from trainer_worker.runs import Run
from trainer_worker.train import train

#: Of the sentences.
_CHANGED = 0.2
_LOOKS = 4


def measure_warm(bench: Bench, setting: str, steps: int) -> dict[str, Any]:
    """`recovered` on the new version's held-out targets after the same steps from both beginnings."""
    model = bench.student()
    first = bench.document(setting, steps=steps)
    before, _ = _trained(bench, model, first, None)
    second = bench.next_version(setting, changed=_CHANGED, steps=steps)
    _, cold = _trained(bench, model, second, None)
    _, warm = _trained(bench, model, second, before)
    print(f"  from scratch {cold}, from the KM before {warm}", file=sys.stderr)
    return {
        "warm_start": {"changed": _CHANGED, "steps": steps, "recovered_scratch": cold, "recovered_warm": warm}
    }


def _trained(
    bench: Bench, model: Any, document: Document, before: Slot | None
) -> tuple[Slot, list[list[float]]]:
    recipe = document.recipe.model_copy(update={"evaluations": _LOOKS})
    slot = open_slot(model, rank=recipe.rank, alpha=recipe.alpha, seed=recipe.seed)
    if before is not None:
        slot.restore(before.snapshot())
    examples = [*document.examples.fit, *document.examples.heldout]
    pairs = pairs_of(examples, bench.targets(model, examples))
    fit = len(document.examples.fit)
    (ended,) = train(model, [Run(slot, pairs[:fit], pairs[fit:], recipe, document.steps)])
    if ended.error is not None:
        raise ended.error
    return slot, [[look.step, look.recovered or 0.0] for look in ended.state.evaluations]
