"""With whom a document is shared, on its page, for its owners."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Response

from km_registry.types import Role
from server.routes import grants as api
from server.routes import groups
from server.schemas_access import GrantIn
from server.state import AppState, State
from server.web.access import ChangerDep, Visitor, VisitorDep
from server.web.context import Web, WebDep
from server.web.page_route import PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_PLACE = "/ui/documents/{document_id}/grants"


@router.get(_PLACE, response_class=Response)
async def card(document_id: str, by: VisitorDep, state: State, web: WebDep) -> Response:
    """Who holds which role."""
    return await _card(document_id, by, state, web)


@router.post(_PLACE, response_class=Response)
async def share(
    document_id: str,
    by: ChangerDep,
    state: State,
    web: WebDep,
    who: Annotated[str, Form(max_length=300)],
    kind: Annotated[Literal["user", "group"], Form()] = "user",
    role: Annotated[Role, Form()] = Role.READER,
) -> Response:
    """Give a user or a group a role."""
    sent = (
        GrantIn(role=role, user=who, group=None)
        if kind == "user"
        else GrantIn(role=role, group=who, user=None)
    )
    await api.share(document_id, sent, Response(), by.principal, state)
    return await _card(document_id, by, state, web)


@router.delete(_PLACE + "/{principal_id}", response_class=Response)
async def unshare(document_id: str, principal_id: str, by: ChangerDep, state: State, web: WebDep) -> Response:
    """Take it away; what they stream is cut."""
    await api.unshare(document_id, principal_id, by.principal, state)
    return await _card(document_id, by, state, web)


async def held(document_id: str, by: Visitor, state: AppState) -> dict[str, Any]:
    """What the card shows: who holds which role, and the groups that may be named."""
    grants = (await api.listing(document_id, by.principal, state)).grants
    known = (await groups.listing(by.principal, state)).groups
    return {"document_id": document_id, "grants": grants, "groups": known}


async def _card(document_id: str, by: Visitor, state: AppState, web: Web) -> Response:
    return web.page("_sharing.html", by=by, **await held(document_id, by, state))
