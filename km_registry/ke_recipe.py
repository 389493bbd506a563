"""How a KE is trained, and what it is trained on: shared by the command that gathers and the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from km_registry.errors import KMError

#: With every document's own KM beside it, or without any: the paper's KM+KE and KE alone.
Trained = Literal["km+ke", "ke"]


class KEDataError(KMError):
    """The documents a KE is to be trained on cannot be used."""


class KERecipe(BaseModel):
    """Everything that decides what the training of a KE does, beside its documents."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int = Field(0, ge=0, lt=2**31, description="decides everything that is drawn")
    trained: Trained = Field("km+ke", description="km+ke: beside each document's KM; ke: without any")
    rank: int = Field(16, ge=1, le=256)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    learning_rate: float = Field(5e-4, gt=0, le=1)
    scalars_learning_rate: float = Field(5e-3, gt=0, le=1, description="of w_M and w_E")
    warmup: float = Field(0.06, ge=0, le=1, description="share of the steps")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    steps: int = Field(200, ge=1, le=100_000)
    documents_per_step: int = Field(4, ge=1, le=64)
    batch_tokens: int = Field(640, ge=16, description="tokens in a step, of all its documents")
    passages_share: float = Field(
        0.4, ge=0, le=1, description="of the questions that have passages in the prompt"
    )
    wrong_share: float = Field(
        0.1, ge=0, le=1, description="of the questions with passages: those of another document"
    )
    heldout_documents: int = Field(4, ge=1, description="documents that are only looked at")
    heldout_questions: int = Field(6, ge=1, description="of each of them that are asked at a look")
    evaluations: int = Field(8, ge=1, description="times the held-out documents are looked at")
    patience: int | None = Field(3, ge=1, description="stop after so many looks without a better one")


class KEQuestion(BaseModel):
    """A question with its accepted answers, best first. With `choices`, `gold` is the index of the right one.
    `passages` are its document's best ones in the order of the prompt, the best one last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field(min_length=1)
    answers: tuple[str, ...] = Field(min_length=1)
    choices: tuple[str, ...] = ()
    gold: int | None = None
    passages: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if any(not text.strip() for text in (*self.answers, *self.choices)):
            raise ValueError("an answer is empty")
        if bool(self.choices) != (self.gold is not None):
            raise ValueError("choices and gold go together")
        if self.gold is not None and not 0 <= self.gold < len(self.choices):
            raise ValueError(f"gold is {self.gold}, and there are {len(self.choices)} choices")
        return self


class KEDocument(BaseModel):
    """A document's questions, and the directory of its KM (None: it has none)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    title: str
    km: str | None = None
    questions: tuple[KEQuestion, ...] = Field(min_length=1)


def read_documents(path: Path) -> tuple[KEDocument, ...]:
    """The documents of a file that `write_documents` wrote.

    Raises:
        KEDataError: it is not there or a line is not what it should be; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise KEDataError(f"{path} cannot be read ({error}).") from error
    found = tuple(_parsed(path, lines))
    if not found:
        raise KEDataError(f"{path} holds no document.")
    return found


def write_documents(path: Path, documents: Iterable[KEDocument]) -> None:
    """One line of JSON for each document."""
    path.write_text("".join(one.model_dump_json() + "\n" for one in documents), encoding="utf-8")


def _parsed(path: Path, lines: list[str]) -> Iterator[KEDocument]:
    for number, line in enumerate(lines, start=1):
        try:
            yield KEDocument.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"])) or "the line"
            raise KEDataError(f"{path}, line {number}, {where}: {problem['msg']}.") from error
