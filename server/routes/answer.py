"""Asking a document."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from sse_starlette import ServerSentEvent

from server.answer_stream import Wire, event, streamed
from server.auth import UserDep
from server.disconnect import unless_disconnected
from server.problems import STREAMED, documented
from server.questions import Answer, Question
from server.schemas_answer import AnswerOut, QuestionIn
from server.state import AppState, State

router = APIRouter(tags=["answers"])


@router.post(
    "/answer",
    summary="Ask a question about a document",
    response_model=AnswerOut,
    responses=STREAMED | documented(404, 409, 413, 422, 429, 503, 504),
)
async def answer(
    request: Request, sent: QuestionIn, principal: UserDep, state: State
) -> AnswerOut | Response:
    """Modes `km` and `km+rag` are 409 until the KM is trained; `auto` always answers. Hanging up ends the
    generation."""
    question = Question(
        document_id=sent.document_id,
        question=sent.question,
        mode=sent.mode,
        k=sent.k,
        max_tokens=sent.max_tokens,
        temperature=sent.temperature,
        seed=sent.seed,
        ke=sent.ke,
    )
    if sent.stream:
        return await streamed(request, state.answerer.stream(principal, question), _wire(state))
    found = await unless_disconnected(request, state.answerer.answer(principal, question))
    state.metrics.answer(found.mode, found.milliseconds)
    return AnswerOut.model_validate(found)


def _wire(state: AppState) -> Wire[str | Answer]:
    def piece(told: str | Answer) -> ServerSentEvent:
        if isinstance(told, str):
            return event({"text": told}, "delta")
        state.metrics.answer(told.mode, told.milliseconds)
        return event(AnswerOut.model_validate(told).model_dump(mode="json"), "answer")

    return Wire(piece=piece, error=lambda body: event(body, "error"))
