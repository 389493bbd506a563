"""A KE's recipe and its documents: round trip, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from km_registry.ke_recipe import (
    KEDataError,
    KEDocument,
    KEQuestion,
    KERecipe,
    read_documents,
    write_documents,
)

DOCUMENT = KEDocument(
    id="one",
    title="Ostrell",
    km="kms/0ab",
    questions=(
        KEQuestion(question="Who?", answers=("Maren",), passages=("far", "near")),
        KEQuestion(question="Which?", answers=("b",), choices=("a", "b"), gold=1),
    ),
)


def test_documents_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"

    write_documents(path, [DOCUMENT, DOCUMENT.model_copy(update={"id": "two", "km": None})])

    first, second = read_documents(path)
    assert first == DOCUMENT
    assert (second.id, second.km) == ("two", None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no document"),
        ('{"id": "one"}\n', "line 1, title"),
        ("nonsense\n", "line 1, the line"),
        (DOCUMENT.model_dump_json() + '\n{"id": "x", "title": "t", "questions": []}\n', "line 2, questions"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text(content)

    with pytest.raises(KEDataError, match=said):
        read_documents(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KEDataError, match=r"nothing\.jsonl cannot be read"):
        read_documents(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize(
    "fields",
    [
        {"answers": ["  "]},
        {"answers": []},
        {"answers": ["b"], "choices": ["a", "b"]},
        {"answers": ["b"], "choices": ["a", "b"], "gold": 2},
        {"answers": ["b"], "gold": 0},
    ],
)
def test_a_question_that_cannot_be_learned_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KEQuestion.model_validate({"question": "Which?"} | fields)


def test_an_unknown_field_of_a_recipe_is_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        KERecipe.model_validate({"learning_rat": 1e-4})
