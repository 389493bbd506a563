"""What all documents in training share: the base model, settings, registry."""

from __future__ import annotations

from dataclasses import dataclass

from km_registry.limits import recipe_limits
from km_registry.recipe import Recipe, parse_recipe
from km_registry.registry import Registry
from trainer_worker.handover import Handover
from trainer_worker.resident import Resident


def preload() -> None:
    """Import what takes every training seconds to import at its first use."""
    import langchain_text_splitters  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401


@dataclass(frozen=True, slots=True)
class Workshop(Resident):
    """Where documents are trained: `Workshop.open(settings, registry=…, handover=…)`.

    May be shared by threads.
    """

    registry: Registry
    handover: Handover

    def recipe(self, job_id: str) -> Recipe:
        """The job's recipe, held once more to what is possible here and now.

        Raises:
            RecipeError: it cannot work.
        """
        return parse_recipe(self.registry.job_recipe(job_id), recipe_limits(self.settings, self.base))
