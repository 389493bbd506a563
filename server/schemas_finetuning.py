"""What goes over HTTP on OpenAI's routes for files and trainings (/v1/files, /v1/fine_tuning/jobs)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from server.schemas import DOCUMENT_ID, RecipeIn
from server.schemas_openai import not_offered

_JOB_ID = "job_4m8x1a"


class FileOut(BaseModel):
    """A document as OpenAI's clients know files; the ids are the same."""

    id: str = Field(examples=[DOCUMENT_ID])
    object: Literal["file"] = "file"
    bytes: int = Field(description="size of its text in UTF-8")
    created_at: int = Field(description="seconds since 1970")
    filename: str = Field(description="the document's title")
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["processed"] = "processed"


class FileList(BaseModel):
    """Your documents and those shared with you."""

    object: Literal["list"] = "list"
    data: list[FileOut]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class FileDeleted(BaseModel):
    """A document that is gone; GET /receipts/{id} has the receipt."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def _automatic(value: Any) -> Any:
    """Refuse what is set by hand: training here has no such knobs."""
    if any(one != "auto" for one in value.values()):
        raise ValueError("this server trains otherwise. Leave it out, or send a `recipe` (GET /recipes)")
    return value


Hyperparameters = Annotated[dict[str, Any], AfterValidator(_automatic)]


class SupervisedIn(BaseModel):
    """How to train; all of it by itself."""

    model_config = ConfigDict(title="Supervised", extra="ignore")

    hyperparameters: Hyperparameters = {}


class MethodIn(BaseModel):
    """The method; `recipe` says it in full."""

    model_config = ConfigDict(title="Method", extra="ignore")

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedIn = SupervisedIn()


class FineTuningIn(BaseModel):
    """A training of a document. Fields that are not known are ignored, as clients expect."""

    model_config = ConfigDict(
        title="Fine-tuning job",
        extra="ignore",
        json_schema_extra={"examples": [{"model": "base", "training_file": DOCUMENT_ID}]},
    )

    model: Literal["base"] = Field(description="`base`: there is one model")
    training_file: str = Field(description="the document's id, as `POST /v1/files` gave it")
    recipe: RecipeIn | None = Field(
        None, description="how to train (GET /recipes); not OpenAI's, sent as `extra_body`"
    )
    seed: int | None = Field(None, ge=0, lt=2**31, description="the recipe's seed")
    hyperparameters: Hyperparameters | None = Field(None, description="only `auto`")
    method: MethodIn | None = None
    suffix: Annotated[str | None, AfterValidator(not_offered)] = Field(None, description="not offered")
    validation_file: Annotated[str | None, AfterValidator(not_offered)] = Field(
        None, description="not offered: part of what is made of the document is held out by itself"
    )
    integrations: Annotated[list[Any] | None, AfterValidator(not_offered)] = Field(
        None, description="not offered"
    )
    metadata: Annotated[dict[str, str] | None, AfterValidator(not_offered)] = Field(
        None, description="not offered"
    )


class JobErrorOut(BaseModel):
    """Why a training failed."""

    code: str = "training_failed"
    message: str
    param: str | None = None


class HyperparametersOut(BaseModel):
    """Chosen by the server; the recipe is in GET /documents/{id}."""

    n_epochs: Literal["auto"] = "auto"
    batch_size: Literal["auto"] = "auto"
    learning_rate_multiplier: Literal["auto"] = "auto"


class FineTuningOut(BaseModel):
    """A training as OpenAI's clients know it."""

    id: str = Field(examples=[_JOB_ID])
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int = Field(description="seconds since 1970")
    finished_at: int | None = None
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    model: str = "base"
    fine_tuned_model: str | None = Field(None, description="the KM, once it is trained and while it is there")
    training_file: str = Field(examples=[DOCUMENT_ID])
    validation_file: str | None = None
    organization_id: str = Field(description="the document's owner")
    result_files: list[str] = []
    hyperparameters: HyperparametersOut = HyperparametersOut()
    method: MethodIn | None = None
    seed: int
    trained_tokens: int | None = None
    error: JobErrorOut | None = None


class FineTuningList(BaseModel):
    """The latest training of each of your documents."""

    object: Literal["list"] = "list"
    data: list[FineTuningOut]
    has_more: bool


class FineTuningEventOut(BaseModel):
    """Something that happened to a training. Quotes no text."""

    id: str = Field(examples=["ftevent-7"])
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int = Field(description="seconds since 1970")
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class FineTuningEventList(BaseModel):
    """What happened, newest first."""

    object: Literal["list"] = "list"
    data: list[FineTuningEventOut]
    has_more: bool
