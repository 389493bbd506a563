"""The end of a training: measured, exported, published."""

from __future__ import annotations

import resource
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from typing import Any

from km_registry.types import KM, Stage
from trainer_worker.evaluate import recovered
from trainer_worker.export import export_km
from trainer_worker.lora import Slot
from trainer_worker.preparation import Material
from trainer_worker.train import Ended
from trainer_worker.workshop import Workshop


def publish(shop: Workshop, model: Any, material: Material, ended: Ended, *, warm: KM | None) -> KM:
    """Measure what the slot has learned and publish it as the document's KM.

    Raises:
        StaleAttemptError: the job was taken away; nothing is left behind.
    """
    assert ended.result is not None, "a run that failed has nothing to publish"
    report, run, recipe = material.report, ended.run, material.recipe
    report.stage(Stage.EVALUATION)
    measured = recovered(
        model,
        run.slot,
        run.heldout or run.pairs,
        batch_tokens=recipe.micro_batch_tokens or recipe.batch_tokens,
        check=material.attempt.check,
    )
    report.stage(Stage.EXPORT, recovered=measured.recovered)
    kinds = Counter(example.kind for example in [*material.examples.fit, *material.examples.heldout])
    metrics = asdict(measured) | asdict(ended.result)
    metrics |= {
        "early_stop": ended.result.steps < material.steps,
        "warm_start": warm.id if warm else None,
        "samples": material.samples,
        "samples_by_kind": dict(sorted(kinds.items())),
        "synthesis": material.synthesis.as_dict(),
        "notes": [*material.synthesis.notes, *material.examples.notes],
        "attempts": material.attempt.job.attempt,
        "seconds": report.finish(),
        "peak_rss_gb": round(peak_rss_bytes() / 2**30, 2),
    }
    return export_and_publish(shop, run.slot, material, metrics)


def export_and_publish(shop: Workshop, slot: Slot, material: Material, metrics: dict[str, Any]) -> KM:
    """Write the KM into the job's work directory and hand it to the registry; all or nothing."""
    job = material.attempt.job
    with material.attempt.writing():
        staged = shop.registry.work_dir(job.id) / f"attempt-{job.attempt}"
        shutil.rmtree(staged, ignore_errors=True)
        try:
            export_km(
                slot,
                staged,
                base=shop.base,
                document=material.document,
                recipe=material.recipe,
                metrics=metrics,
                made=shop.made,
            )
            material.attempt.trace.stage("publish")
            return shop.registry.publish(job.id, job.attempt, staged, metrics)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


def peak_rss_bytes() -> int:
    """Most memory this process has held so far, with all the documents it trains together."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
