"""What goes over HTTP on /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from server.schemas_openai import MAX_TOP_LOGPROBS, GenerationIn, UsageOut, not_offered

#: Turns in one conversation.
MAX_MESSAGES = 1000


class TextPartIn(BaseModel):
    """A part of a message; only text is taken."""

    model_config = ConfigDict(title="Text part", extra="ignore")

    type: Literal["text"]
    text: str


class MessageIn(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(title="Message", extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPartIn] = ""

    @property
    def text(self) -> str:
        """All of it as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class TextFormatIn(BaseModel):
    """Any text."""

    model_config = ConfigDict(title="Text", extra="ignore")

    type: Literal["text"]


class JsonFormatIn(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(title="JSON object", extra="ignore")

    type: Literal["json_object"]


class NamedSchemaIn(BaseModel):
    """A JSON schema."""

    model_config = ConfigDict(title="Named schema", extra="ignore")

    name: str = ""
    schema_: dict[str, Any] = Field(alias="schema")


class SchemaFormatIn(BaseModel):
    """JSON that fits a schema."""

    model_config = ConfigDict(title="JSON schema", extra="ignore")

    type: Literal["json_schema"]
    json_schema: NamedSchemaIn


FormatIn = Annotated[TextFormatIn | JsonFormatIn | SchemaFormatIn, Field(discriminator="type")]


class ChatIn(GenerationIn):
    """Answer in a conversation. One plain question to a KM is put to it in the form it was trained for."""

    model_config = ConfigDict(
        title="Chat request",
        json_schema_extra={
            "examples": [{"model": "base", "messages": [{"role": "user", "content": "When does it open?"}]}]
        },
    )

    messages: list[MessageIn] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(
        None, ge=1, description="longest answer, in tokens; without it what the server gives, and what fits"
    )
    max_tokens: int | None = Field(None, ge=1, description="the former name of max_completion_tokens")
    logprobs: bool = Field(False, description="log-probability of every token")
    top_logprobs: int = Field(
        0, ge=0, le=MAX_TOP_LOGPROBS, description="how many of the likeliest tokens at each place"
    )
    response_format: FormatIn | None = Field(
        None, description="`json_object` or `json_schema` hold the answer to it; it may still be cut short"
    )
    tools: Annotated[list[Any], AfterValidator(not_offered)] = Field(default=[], description="not offered")
    functions: Annotated[list[Any], AfterValidator(not_offered)] = Field(
        default=[], description="not offered"
    )


class TopTokenOut(BaseModel):
    """A token and its log-probability. `bytes` is null for a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenOut(TopTokenOut):
    """A token that was written, and the likeliest at its place."""

    top_logprobs: list[TopTokenOut]


class ChatLogprobsOut(BaseModel):
    """Log-probabilities of the tokens that were written."""

    content: list[ChatTokenOut]
    refusal: None = None


class ChatMessageOut(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoiceOut(BaseModel):
    """One answer."""

    index: int
    message: ChatMessageOut
    logprobs: ChatLogprobsOut | None = None
    finish_reason: str = Field(description="`stop` at the answer's end, `length` when cut")


class ChatOut(BaseModel):
    """The answers of a request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[ChatChoiceOut]
    usage: UsageOut
