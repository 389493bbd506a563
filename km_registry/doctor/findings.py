"""What an examination finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    `subject` is an id, or a path below the data directory. `remedy` says what `repair` does or, without one,
    what a person has to do.
    """

    subject: str
    problem: str
    remedy: str
    repair: Callable[[], object] | None = field(default=None, compare=False)
