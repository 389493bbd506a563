"""A document with questions that it answers: the sample in the package, or one of the user's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any


class SampleError(ValueError):
    """A file of a sample is missing, or is not what it should be."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The document and its questions, each with its answers."""

    title: str
    text: str
    questions: list[dict[str, Any]]

    @property
    def digest(self) -> str:
        """SHA-256 of its text, as documents have it."""
        return sha256(self.text.encode()).hexdigest()


def load_sample(document: Path | None = None) -> Sample:
    """The document and its questions; without a path, those that lie in the package. SampleError."""
    folder = files("server") / "samples"
    text_file = document or folder / "demo.md"
    questions_file = document.with_suffix(".jsonl") if document else folder / "demo.jsonl"
    try:
        heading, _, text = text_file.read_text(encoding="utf-8").partition("\n")
        lines = questions_file.read_text(encoding="utf-8").splitlines()
        questions = [json.loads(line) for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SampleError(
            f"{error}. A document is a .md file whose first line is its title; beside it lies a .jsonl file "
            'of the same name with lines like {"question": "…", "answers": ["…"]}.'
        ) from error
    return Sample(heading.lstrip("# ").strip(), text.strip(), questions)
