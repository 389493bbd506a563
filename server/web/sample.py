"""The sample document that comes with the package, for a first look."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

#: Shown questions: some that passages answer, some that want the KM.
_SHOWN = (0, 1, 4, 7, 13)


@dataclass(frozen=True, slots=True)
class Sample:
    """The sample with questions that it answers."""

    title: str
    text: str
    questions: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of its text, as documents have it."""
        return sha256(self.text.encode()).hexdigest()


@cache
def sample() -> Sample:
    """The sample."""
    folder = files("server") / "samples"
    heading, _, text = (folder / "demo.md").read_text(encoding="utf-8").partition("\n")
    lines = (folder / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines if line.strip()]
    shown = tuple(questions[place] for place in _SHOWN if place < len(questions))
    return Sample(heading.lstrip("# ").strip(), text.strip(), shown)
