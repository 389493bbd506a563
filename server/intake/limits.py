"""How much a file may cost. Passed to the child as JSON."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """Bounds on one file: its size, what it may grow to, and what reading it may take.

    `seconds` of processor time; a child that is not through after thrice that is ended as well.
    """

    file_bytes: int
    text_bytes: int
    pages: int
    unpacked_bytes: int
    memory_bytes: int
    seconds: int
