"""The recipe of a KM: everything that decides what a training does. Validated at upload,
used by the worker, stored in the KM's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from km_registry.errors import KMError

Objective = Literal["sdcd", "ddcd", "lm", "pit"]
Kind = Literal["recall", "repeat", "qa", "summary", "entigraph"]
Filter = Literal["grounded", "duplicates", "degenerate"]
Preset = Literal["default", "fast", "paper"]

#: Tokens that instruction, title and chat format add to a chunk.
_PROMPT_TOKENS = 128
_SHOWN_PROBLEMS = 3
#: More than any document needs; what lies above is a mistake that would keep a worker for days.
_MOST_STEPS = 100_000

#: What a queue may be called.
QUEUE_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class RecipeError(KMError):
    """The recipe cannot work."""

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        super().__init__(message)
        #: The first field that has to change.
        self.field = field


def _wrong(field: str, message: str) -> PydanticCustomError:
    """What a check of several fields raises; `_place` reads the field to change."""
    return PydanticCustomError("recipe", "{message}", {"field": field, "message": message})


class Recipe(BaseModel):
    """How a KM is made. The defaults are for documents of some hundred tokens and a small base model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: Preset = Field("default", description="the set of defaults that the other fields change")
    seed: int = Field(0, ge=0, lt=2**31, description="decides everything that is drawn")

    objective: Objective = Field(
        "sdcd",
        description="sdcd: distil on synthetic text; ddcd: on the document's own halves; lm: next-token loss "
        "on the document; pit: the same with synthetic questions and answers before it",
    )
    kinds: dict[Kind, float] = Field(
        {"recall": 1.0, "repeat": 1.0, "qa": 1.0},
        description="kinds of synthetic text and how often each is drawn (2: every sample twice an epoch); a "
        "list takes each once",
    )
    chunk_tokens: int = Field(128, ge=16, description="longest chunk the teacher reads, in tokens")
    chunk_overlap: int = Field(0, ge=0, description="tokens that a chunk repeats of the one before")
    samples_per_chunk: int = Field(
        6, ge=1, le=64, description="texts of each kind that the generator writes about a chunk"
    )
    generator: str | None = Field(
        None, description="which of the server's generators writes them; without one, the base model"
    )
    queue: str | None = Field(
        None,
        pattern=QUEUE_PATTERN,
        description="which workers may train it: those that serve the queue of this name; without one, those "
        "that serve `default`",
    )
    temperature: float = Field(0.6, ge=0, le=2, description="of the generator")
    filters: tuple[Filter, ...] = Field(
        get_args(Filter),
        description="which written texts are left out: not grounded in the chunk, said before, degenerate",
    )
    max_target_tokens: int = Field(128, ge=8, description="longest synthetic text, in tokens")

    rank: int = Field(16, ge=1, le=256)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    learning_rate: float = Field(2e-3, gt=0, le=1)
    warmup: float = Field(0.06, ge=0, le=1, description="share of the steps")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    kl_weight: float = Field(1.0, ge=0)
    hidden_weight: float = Field(1.0, ge=0)
    hidden_reduction: Literal["mean", "sum"] = Field("mean", description="over the layers")
    batch_tokens: int = Field(192, ge=16, description="tokens in a step")
    micro_batch_tokens: int | None = Field(
        None, ge=16, description="most tokens in memory at once; a step's gradient is summed over such parts"
    )
    steps: int | None = Field(
        None, ge=1, le=_MOST_STEPS, description="without one, a function of the document's size"
    )
    steps_per_token: float = Field(0.27, gt=0, description="steps for each token of the document")
    min_steps: int = Field(60, ge=1, le=_MOST_STEPS)
    max_steps: int = Field(1500, ge=1, le=_MOST_STEPS)
    warm_start: bool = Field(
        True, description="a new version of a document is trained from the previous version's KM"
    )
    heldout_share: float = Field(0.1, gt=0, lt=0.9, description="of the synthetic samples")
    evaluations: int = Field(3, ge=1, description="times the held-out loss is looked at")
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after so many evaluations without a better `recovered`; without one, never",
    )

    @field_validator("kinds", mode="before")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        return dict.fromkeys(value, 1.0) if isinstance(value, (list, tuple)) else value

    @field_validator("kinds")
    @classmethod
    def _some_weight(cls, kinds: dict[Kind, float]) -> dict[Kind, float]:
        if any(weight < 0 or weight > 64 for weight in kinds.values()):
            raise ValueError("weights lie between 0 and 64")
        if sum(kinds.values()) == 0:
            raise ValueError("name at least one kind with a weight above zero")
        return kinds

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.kl_weight == 0 and self.hidden_weight == 0:
            raise _wrong("kl_weight", "kl_weight and hidden_weight cannot both be zero")
        if self.chunk_overlap >= self.chunk_tokens:
            raise _wrong("chunk_overlap", f"it must be below chunk_tokens, which is {self.chunk_tokens}")
        if self.min_steps > self.max_steps:
            raise _wrong("min_steps", f"it cannot be above max_steps, which is {self.max_steps}")
        return self

    @property
    def mixture(self) -> dict[Kind, float]:
        """The kinds that are drawn at all, with their weights, in a fixed order."""
        return {kind: self.kinds[kind] for kind in get_args(Kind) if self.kinds.get(kind)}

    def steps_for(self, document_tokens: int) -> int:
        """Steps for a document of that many tokens, unless the recipe says how many."""
        return self.steps or min(
            self.max_steps, max(self.min_steps, round(self.steps_per_token * document_tokens))
        )


#: What a preset changes of the defaults.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    # Made of the document alone: nothing waits for a generator.
    "fast": {"kinds": {"recall": 1.0, "repeat": 1.0}, "steps_per_token": 0.13, "min_steps": 40},
    # Sections 3 and 4 of the paper, for models that write well and read long chunks.
    "paper": {
        "kinds": {"summary": 1.0, "qa": 1.0, "entigraph": 1.0},
        "chunk_tokens": 2048,
        "samples_per_chunk": 16,
        "temperature": 1.0,
        "max_target_tokens": 512,
        "dropout": 0.05,
        "learning_rate": 1e-3,
        "hidden_reduction": "sum",
        "batch_tokens": 2048,
        "steps_per_token": 0.05,
        "min_steps": 250,
        "evaluations": 10,
    },
}


@dataclass(frozen=True, slots=True)
class RecipeLimits:
    """What a recipe must fit: the server's rank, the tokens the model reads, the generators."""

    rank: int
    context_tokens: int | None = None
    generators: frozenset[str] = field(default_factory=frozenset)


def parse_recipe(fields: Mapping[str, Any], limits: RecipeLimits) -> Recipe:
    """The recipe an upload asked for: the preset's defaults, changed by its fields. The rank is the
    server's, unless it names a lower one.

    Raises:
        RecipeError: a field is unknown, out of range or more than the server can do; the message names it.
    """
    preset = fields.get("preset", "default")
    base = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    defaults = {**base, "rank": limits.rank, "alpha": fields.get("rank", limits.rank)}
    try:
        recipe = Recipe.model_validate({**defaults, **fields})
    except ValidationError as error:
        problems = error.errors(include_url=False)
        shown = [f"{_place(problem)}: {_message(problem)}" for problem in problems[:_SHOWN_PROBLEMS]]
        message = "; ".join(shown)
        raise RecipeError(f"The recipe cannot work: {message}", field=_place(problems[0])) from error
    _fit(recipe, limits)
    return recipe


def _place(problem: Any) -> str:
    # Pydantic marks a wrong key of a mapping by a part of its own.
    parts = [str(part) for part in problem["loc"] if part != "[key]"]
    return ".".join(parts) or str(problem["ctx"]["field"])


def _message(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "there is no such field; leave it out or correct its name"
    return str(problem["msg"]).removeprefix("Value error, ")


def _fit(recipe: Recipe, limits: RecipeLimits) -> None:
    if recipe.rank > limits.rank:
        raise RecipeError(
            f"The recipe cannot work: rank: {recipe.rank} is above the {limits.rank} this server serves; "
            f"lower it, or set KM_LORA_RANK",
            field="rank",
        )
    needed = recipe.chunk_tokens + recipe.max_target_tokens + _PROMPT_TOKENS
    if limits.context_tokens is not None and needed > limits.context_tokens:
        raise RecipeError(
            f"The recipe cannot work: chunk_tokens: a chunk of {recipe.chunk_tokens} tokens and a target of "
            f"{recipe.max_target_tokens} do not fit into the {limits.context_tokens} tokens the model reads; "
            f"at most {max(0, limits.context_tokens - recipe.max_target_tokens - _PROMPT_TOKENS)} do",
            field="chunk_tokens",
        )
    if recipe.generator is not None and recipe.generator not in limits.generators:
        known = ", ".join(sorted(limits.generators)) or "none"
        raise RecipeError(
            f"The recipe cannot work: generator: this server has no generator {recipe.generator!r} "
            f"(it has {known}); leave it out, or have KM_GENERATORS name it",
            field="generator",
        )
