"""Who trains, for administrators: as `GET /workers`, and what waits for a worker that is not there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool

from server.routes import workers as api
from server.state import AppState, State
from server.web.access import AdministratorDep, Visitor
from server.web.context import WebDep
from server.web.page_route import PageRoute
from server.workers import unserved

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/ui/workers", response_class=Response)
async def page(by: AdministratorDep, state: State, web: WebDep) -> Response:
    """Every worker, and how to start one."""
    return web.page("workers.html", **await _shown(by, state))


@router.get("/ui/workers/rows", response_class=Response)
async def rows(by: AdministratorDep, state: State, web: WebDep) -> Response:
    """The list alone, to follow it."""
    return web.page("_workers.html", **await _shown(by, state))


async def _shown(by: Visitor, state: AppState) -> dict[str, Any]:
    found = (await api.listed(by.principal, state)).workers
    waiting = await run_in_threadpool(state.registry.waiting_by_queue)
    return {
        "by": by,
        "workers": found,
        "unserved": unserved(waiting, (queue for one in found for queue in one.queues)),
        "now": datetime.now(UTC),
    }
