"""Users and groups, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Response

from server.routes import groups, removals, users
from server.schemas import RemovalOut, UserCreated, UserIn
from server.schemas_access import GroupIn, MemberIn
from server.state import AppState, State
from server.web.access import AdministeringDep, AdministratorDep, Visitor
from server.web.context import Web, WebDep
from server.web.page_route import PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_PER_PAGE = 100


@router.get("/ui/people", response_class=Response)
async def page(
    by: AdministratorDep,
    state: State,
    web: WebDep,
    after: Annotated[str | None, Query(max_length=300)] = None,
) -> Response:
    """Users by name, and groups with their members."""
    return web.page("people.html", **await _users(by, state, after=after), groups=await _groups(by, state))


@router.post("/ui/users", response_class=Response)
async def create_user(
    by: AdministeringDep,
    state: State,
    web: WebDep,
    name: Annotated[str, Form(max_length=200)],
    is_admin: Annotated[bool, Form()] = False,
) -> Response:
    """A new user; their first key is shown in the answer, and never again."""
    created = await users.create(UserIn(name=name, is_admin=is_admin), by.principal, state)
    return web.page("_users.html", **await _users(by, state, created=created))


@router.delete("/ui/users/{user_id}", response_class=Response)
async def delete_user(user_id: str, by: AdministeringDep, state: State, web: WebDep) -> Response:
    """Delete a user with every document that they uploaded."""
    receipt = await removals.delete_user(user_id, by.principal, state)
    return web.page("_users.html", **await _users(by, state, receipt=receipt))


@router.post("/ui/groups", response_class=Response)
async def create_group(
    by: AdministeringDep, state: State, web: WebDep, name: Annotated[str, Form(max_length=200)]
) -> Response:
    """A new group."""
    await groups.create(GroupIn(name=name), by.principal, state)
    return await _shown_groups(by, state, web)


@router.delete("/ui/groups/{group_id}", response_class=Response)
async def remove_group(group_id: str, by: AdministeringDep, state: State, web: WebDep) -> Response:
    """Remove a group with all that is shared with it."""
    await groups.remove(group_id, by.principal, state)
    return await _shown_groups(by, state, web)


@router.post("/ui/groups/{group_id}/members", response_class=Response)
async def add_member(
    group_id: str,
    by: AdministeringDep,
    state: State,
    web: WebDep,
    user: Annotated[str, Form(max_length=300)],
) -> Response:
    """Put a user into a group."""
    await groups.add_member(group_id, MemberIn(user=user), Response(), by.principal, state)
    return await _shown_groups(by, state, web)


@router.delete("/ui/groups/{group_id}/members/{user_id}", response_class=Response)
async def remove_member(
    group_id: str, user_id: str, by: AdministeringDep, state: State, web: WebDep
) -> Response:
    """Take a user out of a group."""
    await groups.remove_member(group_id, user_id, by.principal, state)
    return await _shown_groups(by, state, web)


async def _users(
    by: Visitor,
    state: AppState,
    *,
    after: str | None = None,
    created: UserCreated | None = None,
    receipt: RemovalOut | None = None,
) -> dict[str, Any]:
    found = await users.listing(by.principal, state, limit=_PER_PAGE, after=after)
    return {
        "by": by,
        "users": found.users,
        "next_after": found.next_after,
        "created": created,
        "receipt": receipt,
    }


async def _groups(by: Visitor, state: AppState) -> list[dict[str, Any]]:
    found = (await groups.listing(by.principal, state)).groups
    return [
        {"group": one, "members": (await groups.members(one.id, by.principal, state)).members}
        for one in found
    ]


async def _shown_groups(by: Visitor, state: AppState, web: Web) -> Response:
    return web.page("_groups.html", by=by, groups=await _groups(by, state))
