"""API keys."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from server.auth import UserDep
from server.problems import documented
from server.schemas_access import KeyCreated, KeyIn, KeyList, KeyOut
from server.state import State

router = APIRouter(prefix="/keys", tags=["keys"])


@router.get("", summary="API keys, without their secrets", responses=documented(422))
async def listing(
    principal: UserDep,
    state: State,
    user: Annotated[
        str | None, Query(max_length=300, description="id or exact name of whose, for administrators")
    ] = None,
) -> KeyList:
    """Yours; everybody's for administrators."""
    found = await run_in_threadpool(partial(state.registry.people.keys, principal, user=user))
    return KeyList(keys=[KeyOut.model_validate(one) for one in found])


@router.post("", status_code=201, summary="Make an API key", responses=documented(409, 422))
async def create(sent: KeyIn, principal: UserDep, state: State) -> KeyCreated:
    """The answer holds its secret, shown this once. A key that expires makes none that outlives it."""
    make = partial(state.registry.people.create_key, user=sent.user, expires_at=sent.expires_at)
    key, secret = await run_in_threadpool(make, principal, sent.name)
    return KeyCreated(key=KeyOut.model_validate(key), api_key=secret)


@router.delete("/{key_id}", summary="Revoke an API key", responses=documented(404, 409))
async def revoke(key_id: str, principal: UserDep, state: State) -> KeyOut:
    """From the next request on it is not known; what streams by it is cut within 2 s."""
    return KeyOut.model_validate(await run_in_threadpool(state.registry.people.revoke_key, principal, key_id))
