"""Workers, for administrators."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from km_registry.types import WorkerSeen
from server.auth import AdminDep
from server.problems import documented
from server.schemas_workers import WorkerList, WorkerOut
from server.state import AppState, State

router = APIRouter(tags=["operation"])


@router.get("/workers", summary="Who trains", responses=documented(403, 503))
async def listed(_: AdminDep, state: State) -> WorkerList:
    """Every worker, on whatever machine, as its last heartbeat tells."""
    return await run_in_threadpool(_all, state)


def _all(state: AppState) -> WorkerList:
    return WorkerList(workers=[_out(state, one) for one in state.queue.workers()])


def _out(state: AppState, one: WorkerSeen) -> WorkerOut:
    return WorkerOut(
        name=one.name,
        host=one.host,
        queues=list(one.queues),
        jobs=state.registry.jobs_held(one.run_id) if one.run_id else [],
        since=one.since,
        seen_at=one.seen_at,
    )
