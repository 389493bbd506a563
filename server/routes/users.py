"""Users, for administrators."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from server.auth import AdminDep
from server.problems import documented
from server.schemas import UserCreated, UserIn, UserOut
from server.state import State

router = APIRouter(tags=["users"])


@router.post("/users", status_code=201, summary="Create a user", responses=documented(403, 422))
async def create(sent: UserIn, _: AdminDep, state: State) -> UserCreated:
    """The answer holds the user's API key, which is shown this once."""
    user, secret = await run_in_threadpool(state.registry.create_user, sent.name)
    return UserCreated(user=UserOut.model_validate(user), api_key=secret)
