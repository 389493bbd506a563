"""Whether the server is there and ready, and what it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from server.auth import AdminDep, UserDep
from server.engine.base import EngineStatus, EngineUnavailableError
from server.problems import documented
from server.schemas import Alive, Readiness
from server.state import AppState, State
from server.workers import by_queue

router = APIRouter(tags=["operation"])

#: What does not answer within this many seconds is not there.
_PATIENCE_S = 5.0


@router.get("/healthz", summary="Whether the process is alive")
async def healthz() -> Alive:
    """Open to everybody."""
    return Alive()


@router.get(
    "/readyz",
    summary="Whether questions can be answered",
    responses={503: {"model": Readiness, "description": "Something is missing"}},
)
async def readyz(response: Response, state: State) -> Readiness:
    """Open to everybody. 503 names what is missing: engine, redis, registry, touch with the other gateways;
    or the server is stopping.

    Retrieval is told apart: without it the server is ready.
    """
    parts = {"engine": state.engine.check(), "redis": _redis(state), "registry": _registry(state)}
    there = await asyncio.gather(*(_there(part) for part in parts.values()))
    missing = [name for name, found in zip(parts, there, strict=True) if not found]
    if not state.fleet.fence.is_open:
        missing.append("touch with the other gateways")
    if state.closing.is_set():
        missing.append("the server is stopping")
    if missing:
        response.status_code = 503
    reasons = (state.engine_keeper.reason, state.retriever.reason, state.fleet.warning)
    return Readiness(
        ready=not missing,
        missing=missing,
        retrieval=state.retriever.state,
        notes=[*(reason for reason in reasons if reason is not None), *state.clocks.warnings],
    )


@router.get(
    "/metrics",
    summary="Prometheus metrics, for administrators",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"},
        **documented(403),
    },
)
async def metrics(_: AdminDep, state: State) -> Response:
    """Requests by route and status, times and tokens by mode, documents, jobs, the engine, adapters."""
    state.metrics.engine(await _status(state))
    state.metrics.refused(
        queue=state.guarded.refused,
        timeout=state.guarded.timed_out,
        restarts=state.engine_keeper.restarts,
    )
    state.metrics.clocks(state.clocks.skews)
    measured = await run_in_threadpool(state.registry.training_measures)
    entries, workers = await run_in_threadpool(_queued, state)
    state.metrics.training(measured, entries, workers)
    state.metrics.kept(*await run_in_threadpool(state.registry.counts))
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", summary="This description", response_class=Response, include_in_schema=False)
async def openapi(request: Request, _: UserDep) -> Response:
    """For any user."""
    return JSONResponse(request.app.openapi())


async def _there(check: Coroutine[Any, Any, object]) -> bool:
    try:
        await asyncio.wait_for(check, _PATIENCE_S)
    except (EngineUnavailableError, RedisError, SQLAlchemyError, OSError):
        return False
    return True


async def _status(state: AppState) -> EngineStatus | None:
    try:
        return await asyncio.wait_for(state.engine.status(), _PATIENCE_S)
    except (EngineUnavailableError, TimeoutError):
        return None


def _queued(state: AppState) -> tuple[int | None, Mapping[tuple[str, str], int] | None]:
    try:
        return len(state.queue.waiting()), by_queue(state.queue.workers())
    except RedisError:
        return None, None


async def _redis(state: AppState) -> None:
    if isinstance(state.redis, Redis):
        await state.redis.ping()


async def _registry(state: AppState) -> None:
    await run_in_threadpool(state.registry.pending_deletions)
