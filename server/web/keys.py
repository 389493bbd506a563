"""API keys: one's own, and for administrators everybody's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Form, Response

from server.routes import keys as api
from server.schemas_access import KeyCreated, KeyIn
from server.state import AppState, State
from server.web.access import ChangerDep, Visitor, VisitorDep
from server.web.context import WebDep
from server.web.names import user_names
from server.web.page_route import PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/ui/keys", response_class=Response)
async def page(by: VisitorDep, state: State, web: WebDep) -> Response:
    """The keys, and a form for another one."""
    return web.page("keys.html", **await _shown(by, state))


@router.post("/ui/keys", response_class=Response)
async def create(
    by: ChangerDep,
    state: State,
    web: WebDep,
    name: Annotated[str, Form(max_length=200)],
    user: Annotated[str, Form(max_length=300)] = "",
    days: Annotated[int, Form(ge=0, le=3650)] = 0,
) -> Response:
    """Make a key; its secret is shown in the answer, and never again."""
    ends = datetime.now(UTC) + timedelta(days=days) if days else None
    created = await api.create(KeyIn(name=name, user=user or None, expires_at=ends), by.principal, state)
    return web.page("_keys.html", **await _shown(by, state, created))


@router.delete("/ui/keys/{key_id}", response_class=Response)
async def revoke(key_id: str, by: ChangerDep, state: State, web: WebDep) -> Response:
    """End a key."""
    await api.revoke(key_id, by.principal, state)
    return web.page("_keys.html", **await _shown(by, state))


async def _shown(by: Visitor, state: AppState, created: KeyCreated | None = None) -> dict[str, Any]:
    now = datetime.now(UTC)
    found = (await api.listing(by.principal, state)).keys
    working = [
        one for one in found if one.revoked_at is None and not (one.expires_at and one.expires_at <= now)
    ]
    names = await user_names(state, {one.user_id for one in working})
    return {"by": by, "keys": working, "ended": len(found) - len(working), "names": names, "created": created}
