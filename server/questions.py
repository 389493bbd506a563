"""What is asked of a document, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass

from server.modes import Mode
from server.retrieval.base import Passage


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, of which document, and how. `k` passages; None leaves their number to the server.

    `ke` is "none", "default", or a KE's name or id; None leaves it to the mode.
    """

    document_id: str
    question: str
    mode: Mode = Mode.AUTO
    k: int | None = None
    max_tokens: int = 64
    temperature: float = 0.0
    seed: int | None = None
    ke: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `version` is the document's version that it is from, `milliseconds` the whole time
    from question to answer.

    `mode` answered, and `why` says why it was that one when `asked_mode` is auto; `why_ke` says why with this
    KE, or without one; `passages` are in the order of the prompt, the best one last.
    """

    answer: str
    mode: Mode
    asked_mode: Mode
    why: str
    document_id: str
    km_id: str | None
    ke_id: str | None
    ke_name: str | None
    why_ke: str
    version: int
    passages: tuple[Passage, ...]
    warning: str | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    milliseconds: float
