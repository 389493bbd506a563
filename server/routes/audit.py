"""The audit log."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from server.auth import UserDep
from server.problems import documented
from server.schemas_access import AuditList, AuditOut
from server.state import State

router = APIRouter(tags=["audit"])


@router.get("/audit", summary="Who did or tried what, newest first", responses=documented(422))
async def audit(
    principal: UserDep,
    state: State,
    actor: Annotated[str | None, Query(max_length=32, description="only what this user did: usr_…")] = None,
    target: Annotated[str | None, Query(max_length=32, description="only what concerns this id")] = None,
    before: Annotated[int | None, Query(ge=0, lt=2**63, description="only what is older than this")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="most entries to return")] = 100,
) -> AuditList:
    """All of it for administrators; for others what they did, what was done to them, and what was done with
    the documents that they own. It holds ids only."""
    look = partial(state.registry.people.audit, actor_id=actor, target_id=target, before=before)
    # One more than asked for tells whether there are older ones.
    found = await run_in_threadpool(partial(look, principal, limit=limit + 1))
    return AuditList(
        entries=[AuditOut.model_validate(one) for one in found[:limit]],
        next_before=found[limit - 1].id if len(found) > limit else None,
    )
