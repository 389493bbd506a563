"""Users, for administrators; and who oneself is."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from server.auth import AdminDep, UserDep
from server.problems import documented
from server.schemas import UserCreated, UserIn, UserOut
from server.schemas_access import GroupOut, Me, UserList
from server.state import State

router = APIRouter(prefix="/users", tags=["users"])


@router.post("", status_code=201, summary="Create a user", responses=documented(403, 409, 422))
async def create(sent: UserIn, principal: AdminDep, state: State) -> UserCreated:
    """The answer holds the user's first API key, which is shown this once."""
    make = partial(state.registry.people.create_user, principal, sent.name, is_admin=sent.is_admin)
    user, secret = await run_in_threadpool(make)
    return UserCreated(user=UserOut.model_validate(user), api_key=secret)


@router.get("", summary="Users by name", responses=documented(403, 422))
async def listing(
    principal: AdminDep,
    state: State,
    limit: Annotated[int, Query(ge=1, le=1000, description="most users to return")] = 100,
    after: Annotated[str | None, Query(max_length=300, description="only users named after this")] = None,
) -> UserList:
    """For administrators. One page; `next_after` leads to the next."""
    found = await run_in_threadpool(
        partial(state.registry.people.users, principal, after=after, limit=limit + 1)
    )
    return UserList(
        users=[UserOut.model_validate(one) for one in found[:limit]],
        next_after=found[limit - 1].name if len(found) > limit else None,
    )


@router.get("/me", summary="Who you are to this server", responses=documented())
async def me(principal: UserDep, state: State) -> Me:
    """The user and the groups behind your key."""
    user = await run_in_threadpool(state.registry.people.user, principal.user_id)
    groups = await run_in_threadpool(state.registry.people.groups, principal)
    return Me(
        user=UserOut.model_validate(user),
        groups=[GroupOut.model_validate(one) for one in groups],
        key_id=principal.key_id,
    )
