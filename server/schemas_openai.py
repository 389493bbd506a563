"""What goes over HTTP on the OpenAI-compatible routes (/v1/*)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

#: Prompts in one request: a batch of the trainer's.
MAX_PROMPTS = 256


def _listed(stop: Any) -> Any:
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else stop


class CompletionIn(BaseModel):
    """Continue one prompt or several. Fields that are not known here are ignored, as clients expect."""

    model_config = ConfigDict(
        title="Completion request",
        extra="ignore",
        json_schema_extra={
            "examples": [{"model": "base", "prompt": "The harbour opens at", "max_tokens": 8}]
        },
    )

    model: str = Field(description="`base`, a document's id (its KM), or a KM's id", examples=["base"])
    prompt: Any = Field(
        description=f"a text, token ids, or a list of up to {MAX_PROMPTS} of either",
        json_schema_extra={
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer"}},
                    "minItems": 1,
                    "maxItems": MAX_PROMPTS,
                },
            ]
        },
    )
    max_tokens: int = Field(16, ge=0, description="longest completion, in tokens; 0 only with `echo`")
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63, description="choice i of a prompt uses seed + i")
    stop: Annotated[list[str], Field(max_length=16), BeforeValidator(_listed)] = Field(
        default=[],
        description="texts at which to stop, one or up to 16; not part of the completion",
        json_schema_extra={"type": ["string", "array", "null"]},
    )
    n: int = Field(1, ge=1, le=16, description="completions for each prompt")
    echo: bool = Field(False, description="put the prompt before the completion")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=1,
        description="log-probability of every token that was chosen; alternatives are not offered",
    )
    stream: Literal[False] | None = Field(None, description="streaming is not offered on this route")
    add_special_tokens: bool = Field(
        True, description="whether the tokenizer adds its own tokens (such as the beginning) to a text"
    )


class LogprobsOut(BaseModel):
    """Log-probabilities of the chosen tokens; null for a prompt's first token, which nothing precedes."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: None = None
    text_offset: list[int] = Field(description="where each token begins, in characters")


class ChoiceOut(BaseModel):
    """One completion. Those of prompt p are `index` p·n to p·n + n − 1."""

    index: int
    text: str
    logprobs: LogprobsOut | None = None
    finish_reason: str


class UsageOut(BaseModel):
    """Tokens; each prompt counts once, however many completions it got."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionOut(BaseModel):
    """The completions of a request."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[ChoiceOut]
    usage: UsageOut


class ModelOut(BaseModel):
    """Something that `model` may name."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="seconds since 1970")
    owned_by: str = "km-server"
    parent: str | None = Field(default=None, description="the model that it is plugged into")
    document_id: str | None = None


class ModelList(BaseModel):
    """The base model and your KMs."""

    object: Literal["list"] = "list"
    data: list[ModelOut]
