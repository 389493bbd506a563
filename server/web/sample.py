"""The sample document that comes with the package, for a first look."""

from __future__ import annotations

from functools import cache

from server.sample import Sample, load_sample

#: Shown questions: some that passages answer, some that want the KM.
_SHOWN = (0, 1, 4, 7, 13)


@cache
def sample() -> Sample:
    """The sample."""
    return load_sample()


@cache
def shown_questions() -> tuple[str, ...]:
    """Questions to begin with."""
    questions = sample().questions
    return tuple(str(questions[place]["question"]) for place in _SHOWN if place < len(questions))
