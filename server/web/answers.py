"""Answers to one question by several modes at a time, and passages with their place in the document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import anyio

from server.errors import NotTrainedError
from server.modes import Mode
from server.problems import PROBLEMS, error_body
from server.questions import Answer

#: Characters of the document that are shown before and after a passage.
_AROUND = 90

_Told = AsyncGenerator[str | Answer, None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that one mode's answer has brought: text, the whole answer, or why there is none."""

    mode: Mode
    text: str | None = None
    answer: Answer | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A passage in its document: what stands around it, and where it lies in hundredths of the whole."""

    text: str
    before: str
    after: str
    score: float
    start: int
    end: int
    left: float
    width: float


async def side_by_side(answers: Mapping[Mode, _Told]) -> AsyncGenerator[Piece, None]:
    """The pieces of every mode's answer as they come. Closing it aborts what is still being written."""
    pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_tell(mode, told, pieces)) for mode, told in answers.items()]
    try:
        left = len(tasks)
        while left:
            piece = await pieces.get()
            if piece is None:
                left -= 1
            else:
                yield piece
        for task in tasks:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*tasks, return_exceptions=True)


async def _tell(mode: Mode, told: _Told, pieces: asyncio.Queue[Piece | None]) -> None:
    try:
        async with aclosing(told):
            async for piece in told:
                pieces.put_nowait(Piece(mode, piece) if isinstance(piece, str) else Piece(mode, answer=piece))
    except NotTrainedError:
        # The API's words for it name routes to call; the page shows the training beside this.
        pieces.put_nowait(Piece(mode, refusal="There is no KM yet: it is not trained."))
    except tuple(PROBLEMS) as error:
        pieces.put_nowait(Piece(mode, refusal=error_body(error)["error"]["message"]))
    finally:
        pieces.put_nowait(None)


def placed(answer: Answer, text: str) -> list[Place]:
    """The answer's passages, best first, in the document's text."""
    whole = max(1, len(text), *(passage.end for passage in answer.passages))
    return [
        Place(
            passage.text,
            _cut(text[max(0, passage.start - _AROUND) : passage.start], at_start=True),
            _cut(text[passage.end : passage.end + _AROUND], at_start=False),
            passage.score,
            passage.start,
            passage.end,
            round(100 * passage.start / whole, 2),
            round(max(0.8, 100 * (passage.end - passage.start) / whole), 2),
        )
        for passage in reversed(answer.passages)
    ]


def _cut(around: str, *, at_start: bool) -> str:
    """Without the half word at its outer end, when it is no whole one."""
    if len(around) < _AROUND:
        return around
    cut = around.partition(" ")[2] if at_start else around.rpartition(" ")[0]
    return f"…{cut}" if at_start else f"{cut}…"
