"""The recipe of a KM: everything that decides what a training does, validated, stored in the manifest."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from km_registry.errors import KMError

Kind = Literal["recall", "repeat", "qa", "summary"]


class RecipeError(KMError):
    """The recipe cannot work."""


class Recipe(BaseModel):
    """How a KM is made. The defaults are for documents of some hundred tokens and a small base model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int = Field(0, ge=0, lt=2**31, description="decides everything that is drawn")

    kinds: tuple[Kind, ...] = Field(
        ("recall", "repeat", "qa"), description="kinds of synthetic text that are mixed"
    )
    chunk_tokens: int = Field(128, ge=16, description="longest chunk the teacher reads, in tokens")
    questions_per_sentence: int = Field(1, ge=1, le=16)
    summaries_per_chunk: int = Field(1, ge=1, le=16)
    temperature: float = Field(0.6, ge=0, le=2, description="of the generator")
    max_target_tokens: int = Field(128, ge=8, description="longest synthetic text, in tokens")

    rank: int = Field(16, ge=1, le=256)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    learning_rate: float = Field(2e-3, gt=0, le=1)
    warmup: float = Field(0.06, ge=0, le=1, description="share of the steps")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    kl_weight: float = Field(1.0, ge=0)
    hidden_weight: float = Field(1.0, ge=0)
    hidden_reduction: Literal["mean", "sum"] = "mean"
    batch_tokens: int = Field(192, ge=16, description="tokens in a step, padding included")
    steps: int | None = Field(None, ge=1, description="without one, a function of the document's size")
    heldout_share: float = Field(0.1, gt=0, lt=0.9, description="of the synthetic samples")
    evaluations: int = Field(3, ge=1, description="times the held-out loss is looked at")

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if not self.kinds:
            raise ValueError("kinds must name at least one kind")
        if self.kl_weight == 0 and self.hidden_weight == 0:
            raise ValueError("kl_weight and hidden_weight cannot both be zero")
        return self

    def steps_for(self, document_tokens: int) -> int:
        """Steps for a document of that many tokens, unless the recipe says how many."""
        return self.steps or min(1500, max(60, round(_STEPS_PER_TOKEN * document_tokens)))


#: A 600-token document gets about 165 steps; the ceiling is the paper's 1500.
_STEPS_PER_TOKEN = 0.27


def parse_recipe(fields: dict[str, Any], *, rank: int) -> Recipe:
    """The recipe an upload asked for; `rank` is the server's, unless it names a lower one.

    Raises:
        RecipeError: a field is unknown or out of range; the message names it.
    """
    defaults = {"rank": rank, "alpha": fields.get("rank", rank)}
    try:
        recipe = Recipe.model_validate(defaults | fields)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'recipe'}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        )
        raise RecipeError(f"The recipe cannot work: {problems}") from error
    if recipe.rank > rank:
        raise RecipeError(
            f"The recipe cannot work: rank: {recipe.rank} is above the {rank} this server serves; "
            f"lower it, or set KM_LORA_RANK"
        )
    return recipe
