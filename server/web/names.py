"""Names of users whose ids are at hand."""

from __future__ import annotations

from collections.abc import Collection

from starlette.concurrency import run_in_threadpool

from km_registry.errors import InvalidValueError
from server.state import AppState


async def user_names(state: AppState, user_ids: Collection[str]) -> dict[str, str]:
    """The names; one who is gone has their id for a name."""
    return await run_in_threadpool(lambda: {one: _name(state, one) for one in user_ids})


def _name(state: AppState, user_id: str) -> str:
    try:
        return state.registry.people.user(user_id).name
    except InvalidValueError:
        return user_id
