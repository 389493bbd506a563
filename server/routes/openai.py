"""The OpenAI-compatible routes."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from server.answer_stream import OPENAI, streamed
from server.auth import CallerDep, UserDep
from server.disconnect import unless_disconnected
from server.problems import STREAMED, documented
from server.schemas_chat import ChatIn, ChatOut
from server.schemas_openai import CompletionIn, CompletionOut, ModelList, ModelOut
from server.state import State

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])

_GENERATION = STREAMED | documented(400, 403, 404, 409, 413, 422, 429, 503, 504)


@router.post(
    "/chat/completions",
    summary="Answer in a conversation",
    response_model=ChatOut,
    responses=_GENERATION,
)
async def chat(request: Request, sent: ChatIn, principal: UserDep, state: State) -> ChatOut | Response:
    """With the base model or one of your KMs. Hanging up ends the generation."""
    if sent.stream:
        return await streamed(request, state.chatter.stream(principal, sent), OPENAI)
    return await unless_disconnected(request, state.chatter.answer(principal, sent))


@router.post(
    "/completions",
    summary="Complete prompts",
    response_model=CompletionOut,
    responses=_GENERATION,
)
async def completions(
    request: Request, sent: CompletionIn, caller: CallerDep, state: State
) -> CompletionOut | Response:
    """With the base model or one of your KMs. `echo`, `logprobs` and `max_tokens` 0 together score a text."""
    if sent.stream:
        return await streamed(request, state.completer.stream(caller, sent), OPENAI)
    return await unless_disconnected(request, state.completer.complete(caller, sent))


@router.get("/models", summary="What `model` may name", responses=documented())
async def models(principal: UserDep, state: State) -> ModelList:
    """The base model, and your KMs: each under its own id and under its document's."""
    return ModelList(data=await run_in_threadpool(state.models.of, principal))


@router.get("/models/{name}", summary="One of them", responses=documented(404))
async def model(name: str, principal: UserDep, state: State) -> ModelOut:
    """404 for what you may not use."""
    return await run_in_threadpool(state.models.one, principal, name)
