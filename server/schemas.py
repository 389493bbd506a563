"""What goes over HTTP, except for the OpenAI-compatible routes. Descriptions and examples feed OpenAPI."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from km_registry.types import JobState, RemovalKind, Role, Stage
from server.retrieval.embedding import RetrievalState

DOCUMENT_ID = "doc_7f3kq2"
KM_ID = "km_9c1d4e"
KE_ID = "ke_3h5t2w"
_TIME = "2026-01-31T12:00:00Z"


RecipeIn = Annotated[dict[str, Any], Field(max_length=50)]
_RECIPE_HELP = "a preset and the fields of the training that differ from it; GET /recipes describes them"


class Input(BaseModel):
    """Something a client sends: a field it has not is a mistake, so it is refused."""

    model_config = ConfigDict(extra="forbid")


class Output(BaseModel):
    """Something the server sends, read from a record."""

    model_config = ConfigDict(from_attributes=True)


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str = Field(
        description="what was wrong and what to change",
        examples=["max_tokens: Input should be greater than or equal to 1"],
    )
    type: str = Field(description="kind of error", examples=["invalid_request_error"])
    param: str | None = Field(
        None, description="the field to change, if it is one field", examples=["max_tokens"]
    )
    code: str | None = Field(
        None, description="the exact case, for programs", examples=["invalid_field", "km_not_trained"]
    )


class ErrorOut(BaseModel):
    """Every refusal, on every route, has this shape (it is OpenAI's)."""

    error: ErrorBody


class DocumentIn(Input):
    """A document to make a KM of."""

    model_config = ConfigDict(
        title="Document to upload",
        json_schema_extra={
            "examples": [
                {"title": "Harbour rules", "text": "The harbour of Ostrell opens at six. Its bell is …"}
            ]
        },
    )

    title: str = Field(description="what to call it; at most 300 characters", examples=["Harbour rules"])
    text: str = Field(description="the text; its size in UTF-8 is limited by the server's settings")
    recipe: RecipeIn | None = Field(None, description=_RECIPE_HELP, examples=[{"steps": 200}])


class DocumentChangeIn(Input):
    """A new version of a document."""

    model_config = ConfigDict(
        title="New version of a document",
        json_schema_extra={"examples": [{"text": "The harbour of Ostrell opens at seven. Its bell is …"}]},
    )

    text: str = Field(description="the whole new text")
    title: str | None = Field(None, description="what to call it; as before without one")
    recipe: RecipeIn | None = Field(None, description=_RECIPE_HELP, examples=[{"preset": "fast"}])


class PriorityIn(Input):
    """Where a waiting training comes among its owner's."""

    priority: Literal["low", "normal", "high"] = Field(examples=["high"])


class TrainIn(Input):
    """How to train again."""

    recipe: RecipeIn | None = Field(
        None, description=_RECIPE_HELP + "; without one, that of the last job", examples=[{"preset": "paper"}]
    )


class VersionOut(Output):
    """A version of a document."""

    version: int = Field(examples=[2])
    title: str
    sha256: str = Field(description="SHA-256 of its text in UTF-8, hexadecimal")
    size_bytes: int
    created_at: datetime


class DocumentOut(Output):
    """A document as it is kept; its text is not shown."""

    id: str = Field(examples=[DOCUMENT_ID])
    title: str = Field(examples=["Harbour rules"])
    sha256: str = Field(description="SHA-256 of the text in UTF-8, hexadecimal")
    size_bytes: int = Field(description="size of the text in UTF-8, in bytes", examples=[3172])
    created_at: datetime = Field(examples=[_TIME])
    version: int = Field(description="its newest version", examples=[2])


class DocumentListed(DocumentOut):
    """A document with how far its newest training is and which version its KM knows."""

    owner_id: str = Field(description="who uploaded it", examples=["usr_2b7d90"])
    role: Role = Field(description="yours")
    state: JobState
    progress: str = Field(description="how far the training is, for people", examples=["training 120/200"])
    recovered: float | None = Field(None, description="of the KM that answers", examples=[0.81])
    km_version: int | None = Field(None, description="version that the KM that answers was trained on")


class JobOut(Output):
    """One training run."""

    id: str = Field(examples=["job_4m8x1a"])
    version: int = Field(description="version of the document that it trains", examples=[2])
    state: JobState
    attempt: int = Field(description="how many times a worker has begun it", examples=[1])
    stage: Stage
    step: int = Field(description="steps done in this stage", examples=[120])
    total_steps: int = Field(description="steps of this stage; 0 while unknown", examples=[200])
    progress: str = Field(description="how far it is, for people", examples=["training 120/200"])
    error: str | None = Field(None, description="why it failed, or is tried again later")
    queue: str = Field(description="whose workers may train it", examples=["default"])
    waits_for: str | None = Field(
        None, description="what has to be there before it can begin: a worker that serves its queue"
    )
    not_before: datetime | None = Field(None, description="when it is tried again, if it has to wait")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class KMOut(Output):
    """A published Knowledge Module."""

    id: str = Field(examples=[KM_ID])
    version: int = Field(description="version of the document that it knows", examples=[1])
    digest: str = Field(description="digest of its content")
    base_fingerprint: str = Field(description="fingerprint of the base model that it belongs to")
    created_at: datetime
    metrics: dict[str, Any] = Field(
        description="what was measured; `recovered` is the share of what the context tells that the KM tells",
        examples=[{"recovered": 0.81, "train_seconds": 214.0}],
    )


class DocumentAndJob(BaseModel):
    """An upload's outcome."""

    document: DocumentOut
    job: JobOut
    created: bool = Field(True, description="false when you had sent the same before and nothing was begun")


class DocumentDetail(BaseModel):
    """A document, its latest job, and its KM once there is one."""

    document: DocumentOut
    role: Role = Field(description="yours")
    job: JobOut
    km: KMOut | None = Field(None, description="of an older version until the newest one's is trained")
    recipe: dict[str, Any] = Field(description="of the latest job")
    versions: list[VersionOut] = Field(description="newest first")


class DocumentList(BaseModel):
    """Your documents and those shared with you, newest first."""

    documents: list[DocumentListed]
    next_before: str | None = Field(
        None, description="give this as `before` to get the next ones; null at the end", examples=[None]
    )


class JobStarted(BaseModel):
    """A training that was asked for again, ordered or cancelled."""

    job: JobOut


class ReceiptOut(Output):
    """Proof of a deletion. Holds no content."""

    document_id: str = Field(examples=[DOCUMENT_ID])
    requested_at: datetime
    completed_at: datetime
    purged: dict[str, Any] = Field(description="what was removed, by kind", examples=[{"text": 1, "kms": 1}])


class RemovalOut(Output):
    """Proof that a KM alone, a version, or a user with all they own was removed. Holds no content."""

    id: str = Field(examples=["rcp_5h2w9c"])
    kind: RemovalKind
    owner_id: str = Field(description="whose it was")
    document_id: str | None = Field(None, examples=[DOCUMENT_ID])
    version: int | None = Field(None, description="of a version: which")
    km_ids: list[str] = Field(description="KMs that are gone")
    requested_at: datetime
    completed_at: datetime
    purged: dict[str, Any] = Field(description="what was removed, by kind", examples=[{"kms": 1}])


class UserIn(Input):
    """A user to create."""

    name: str = Field(min_length=1, max_length=200, examples=["ada"])
    is_admin: bool = Field(False, description="manages users, groups and keys, but reads nothing by that")


class UserOut(Output):
    """A person or service that owns documents."""

    id: str = Field(examples=["usr_2b7d90"])
    name: str = Field(examples=["ada"])
    is_admin: bool = False
    created_at: datetime


class UserCreated(BaseModel):
    """A new user with its API key."""

    user: UserOut
    api_key: str = Field(description="shown this once; only its digest is kept", examples=["km_…"])


class Alive(BaseModel):
    """The process is there."""

    status: str = Field(default="ok", examples=["ok"])


class Readiness(BaseModel):
    """Whether questions can be answered now."""

    ready: bool
    missing: list[str] = Field(description="what is not there", examples=[["engine"]])
    retrieval: RetrievalState = Field(
        description="whether modes rag and km+rag can answer; the server is ready without them",
        examples=["ready"],
    )
    notes: list[str] = Field(description="what is off, and how to have it on", examples=[[]])
