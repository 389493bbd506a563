"""Asking a document on its page: one mode, or several side by side, streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sse_starlette import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from km_registry.errors import ArtifactError, NotFoundError
from server.answer_stream import Wire, event, streamed
from server.modes import Mode
from server.questions import Answer, Question
from server.schemas import Input
from server.schemas_answer import MAX_PASSAGES
from server.state import AppState, State
from server.web.access import ChangerDep
from server.web.answers import Piece, Place, placed, side_by_side
from server.web.context import Web, WebDep
from server.web.page_route import PageRoute
from server.web.wording import COMPARED

router = APIRouter(route_class=PageRoute, include_in_schema=False)


class AskIn(Input):
    """A question and the modes that are to answer it."""

    question: str = Field(min_length=1)
    modes: list[Mode] = Field(min_length=1, max_length=len(Mode))
    k: int | None = Field(None, ge=1, le=MAX_PASSAGES)
    ke: str | None = Field(None, min_length=1, max_length=64)
    max_tokens: int = Field(64, ge=1)


@router.post("/ui/documents/{document_id}/ask", response_class=Response)
async def ask(
    document_id: str, sent: AskIn, request: Request, by: ChangerDep, state: State, web: WebDep
) -> Response:
    """Server-sent events: `delta` {mode, text}, then `answer` {mode, html} or `refusal` {mode, message}, and
    `end` when every mode has answered, with {html} that compares them where there are several."""
    await run_in_threadpool(state.registry.get_document, by.principal, document_id)
    answers = {
        mode: state.answerer.stream(by.principal, _question(document_id, sent, mode))
        for mode in dict.fromkeys(sent.modes)
    }
    told = _told(state, web, side_by_side(answers))
    return await streamed(request, told, Wire(piece=lambda one: one, error=lambda body: event(body, "error")))


def _question(document_id: str, sent: AskIn, mode: Mode) -> Question:
    return Question(
        document_id=document_id,
        question=sent.question,
        mode=mode,
        k=sent.k if mode is Mode.AUTO or mode.uses_passages else None,
        ke=sent.ke,
        max_tokens=sent.max_tokens,
    )


async def _told(
    state: AppState, web: Web, pieces: AsyncGenerator[Piece, None]
) -> AsyncGenerator[ServerSentEvent, None]:
    answers: dict[Mode, Answer] = {}
    try:
        async for piece in pieces:
            if piece.text is not None:
                yield event({"mode": piece.mode, "text": piece.text}, "delta")
            elif piece.answer is not None:
                answers[piece.mode] = piece.answer
                state.metrics.answer(piece.answer.mode, piece.answer.milliseconds)
                places = await run_in_threadpool(_places, state, piece.answer)
                html = web.html("_answer.html", answer=piece.answer, places=places)
                yield event({"mode": piece.mode, "html": html}, "answer")
            else:
                yield event({"mode": piece.mode, "message": piece.refusal}, "refusal")
        yield event({"html": _compared(web, answers)}, "end")
    finally:
        await pieces.aclose()


def _compared(web: Web, answers: Mapping[Mode, Answer]) -> str:
    """What each way costs, in the order in which they are shown; nothing to compare for one."""
    if len(answers) < 2:
        return ""
    shown = {mode: answers[mode] for mode in COMPARED if mode in answers}
    return web.html("_compared.html", answers=shown)


def _places(state: AppState, answer: Answer) -> list[Place]:
    """Where the answer's passages stand; blocking. Without what is around them, once that text is gone."""
    if not answer.passages:
        return []
    try:
        text = state.registry.read_text(answer.document_id, answer.version)
    except (NotFoundError, ArtifactError):
        text = ""
    return placed(answer, text)
