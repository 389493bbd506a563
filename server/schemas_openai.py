"""What goes over HTTP on the OpenAI-compatible routes (/v1/*); chats are in `server.schemas_chat`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from km_registry.types import Role

#: Prompts in one request: a batch of the trainer's.
MAX_PROMPTS = 256
#: Alternatives that may be asked for at each token; the engine's limit.
MAX_TOP_LOGPROBS = 20


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def not_offered(value: Any) -> Any:
    """Refuse what would change the answer and cannot be done; an empty value asks for nothing."""
    if value:
        raise ValueError("this server does not offer it. Leave it out")
    return value


class StreamOptionsIn(BaseModel):
    """What a stream holds beside the answer."""

    model_config = ConfigDict(title="Stream options", extra="ignore")

    include_usage: bool = Field(False, description="a last piece with the tokens of the whole request")


class GenerationIn(BaseModel):
    """What completions and chats have in common. Fields that are not known are ignored, as clients expect."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(
        description="`base`, a document's id (its KM), or a KM's id; with `+default`, or `+` and a KE's "
        "name or id, after it that KE joins in",
        examples=["base", "doc_7f3kq2+default"],
    )
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    frequency_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63, description="choice i of a prompt uses seed + i")
    stop: Annotated[list[str], Field(max_length=16), BeforeValidator(_listed)] = Field(
        default=[],
        description="texts at which to stop, one or up to 16; not part of the answer",
        json_schema_extra={"type": ["string", "array", "null"]},
    )
    n: int = Field(1, ge=1, le=16, description="answers for each prompt")
    stream: bool = Field(False, description="piece by piece, as server-sent events that end with `[DONE]`")
    stream_options: StreamOptionsIn = StreamOptionsIn()
    logit_bias: Annotated[dict[str, float], AfterValidator(not_offered)] = Field(
        default={}, description="not offered"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name == "prompt"}


class CompletionIn(GenerationIn):
    """Continue one prompt or several."""

    model_config = ConfigDict(
        title="Completion request",
        json_schema_extra={
            "examples": [{"model": "base", "prompt": "The harbour opens at", "max_tokens": 8}]
        },
    )

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
    echo: bool = Field(False, description="put the prompt before the completion")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="log-probability of every token, with that many of the likeliest at its place",
    )
    add_special_tokens: bool = Field(
        True, description="whether the tokenizer adds its own tokens (such as the beginning) to a text"
    )


class LogprobsOut(BaseModel):
    """Log-probabilities of the chosen tokens; null for a prompt's first token, which nothing precedes."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = Field(description="where each token begins, in characters")


class ChoiceOut(BaseModel):
    """One completion. Those of prompt p are `index` p·n to p·n + n − 1."""

    index: int
    text: str
    logprobs: LogprobsOut | None = None
    finish_reason: str | None = Field(description="`stop` or `length`; null while a stream goes on")


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
    role: Role | None = Field(default=None, description="yours on the document")


class ModelList(BaseModel):
    """The base model and your KMs."""

    object: Literal["list"] = "list"
    data: list[ModelOut]
