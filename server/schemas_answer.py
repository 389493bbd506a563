"""What goes over HTTP when a document is asked. Descriptions and examples feed OpenAPI."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from server.modes import Mode
from server.schemas import DOCUMENT_ID, KE_ID, KM_ID, Input, Output

#: Most passages that may be asked for.
MAX_PASSAGES = 64


class QuestionIn(Input):
    """A question about a document."""

    model_config = ConfigDict(
        title="Question",
        json_schema_extra={
            "examples": [
                {"document_id": DOCUMENT_ID, "question": "When does the harbour open?", "mode": "auto"}
            ]
        },
    )

    document_id: str
    question: str = Field(
        min_length=1, description="the question; its length is limited by the server's settings"
    )
    mode: Mode = Field(
        Mode.AUTO,
        description="`km`: only the question is in the prompt and the document's KM is plugged in; `rag`: "
        "the document's best passages are in the prompt, without KM; `km+rag`: both; `icl`: the whole "
        "document is in the prompt, without KM; `base`: only the question, without KM; `auto`: what "
        "measures best of these for the base model that is served, with the KM once it is trained",
    )
    k: int | None = Field(
        None,
        ge=1,
        le=MAX_PASSAGES,
        description="how many passages; with `rag`, `km+rag` and `auto` only. The server's settings say how "
        "many it takes without it",
        examples=[2],
    )
    ke: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="which KE joins in, with the KM or, in modes without KM, alone: `none`, `default`, or "
        "a KE's name or id (GET /kes). Without it, `auto` uses the default KE as the server's settings say, "
        "and the other modes use none",
        examples=["default"],
    )
    max_tokens: int = Field(
        64, ge=1, description="longest answer, in tokens; the settings' limit is 1024 by default"
    )
    temperature: float = Field(
        0.0, ge=0, le=2, allow_inf_nan=False, description="0 always takes the likeliest token"
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="makes an answer at temperature > 0 repeatable"
    )
    stream: bool = Field(
        False,
        description="as server-sent events: `delta` events with {text}, then one `answer` event with all "
        "that is answered without it; an `error` event where it is cut short",
    )


class PassageOut(Output):
    """A piece of the document that was in the prompt."""

    text: str = Field(examples=["The harbour of Ostrell opens at six."])
    score: float = Field(description="cosine of the passage's vector and the question's", examples=[0.6931])
    start: int = Field(description="where it begins in the document, in Unicode characters", examples=[0])
    end: int = Field(description="where it ends; this character is no part of it", examples=[36])


class AnswerOut(Output):
    """An answer, what it was made of, and what it cost."""

    answer: str = Field(examples=["At six."])
    mode: Mode = Field(description="the mode that answered; never `auto`", examples=["km+rag"])
    asked_mode: Mode = Field(description="the mode that was asked for", examples=["auto"])
    why: str = Field(
        description="why it was this mode that answered", examples=["the document's KM is trained"]
    )
    document_id: str = Field(examples=[DOCUMENT_ID])
    km_id: str | None = Field(description="the KM that answered; null in the other modes", examples=[KM_ID])
    ke_id: str | None = Field(description="the KE that joined in; null without one", examples=[KE_ID])
    ke_name: str | None = Field(description="its name", examples=["answers"])
    why_ke: str = Field(description="why it was this KE, or none", examples=["mode auto uses the default KE"])
    version: int = Field(description="version of the document that it was answered from", examples=[1])
    passages: list[PassageOut] = Field(
        description="what was retrieved, in the order of the prompt: the best one is last; empty in the "
        "modes without passages"
    )
    warning: str | None = Field(
        description="what to beware of: the KM or the KE was trained for another prompt format",
        examples=[None],
    )
    prompt_tokens: int = Field(examples=[28])
    completion_tokens: int = Field(examples=[4])
    finish_reason: str = Field(description="`stop` at the answer's end, `length` when cut at max_tokens")
    milliseconds: float = Field(
        description="from the question's arrival to the whole answer", examples=[412.5]
    )
