"""A new version of a document may begin where the version before it ended."""

from __future__ import annotations

import structlog
from safetensors.torch import load_file

from km_registry import artifacts
from km_registry.errors import ArtifactError
from km_registry.types import KM
from trainer_worker.lora import Slot
from trainer_worker.preparation import Material
from trainer_worker.workshop import Workshop

_log = structlog.get_logger(__name__)


def warm_start(shop: Workshop, material: Material, slot: Slot) -> KM | None:
    """Have the slot begin with the previous version's KM, if the recipe wants that and the KM is of the same
    base model and shape; that KM, None when it begins afresh."""
    recipe, job_id = material.recipe, material.attempt.job.id
    previous = shop.registry.previous_km(job_id) if recipe.warm_start else None
    if previous is None:
        return None
    try:
        with shop.registry.held_km(previous) as directory:
            manifest = artifacts.verify(directory, base_fingerprint=shop.base.fingerprint)
            if (manifest["rank"], manifest["alpha"]) != (recipe.rank, recipe.alpha):
                _log.info("the previous KM has another rank or alpha; beginning afresh", job=job_id)
                return None
            slot.load_peft_state(load_file(directory / artifacts.WEIGHTS))
    except (ArtifactError, FileNotFoundError) as error:
        _log.warning("the previous KM cannot be trained on; beginning afresh", job=job_id, error=str(error))
        return None
    return previous
