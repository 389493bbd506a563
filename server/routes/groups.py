"""Groups of users."""

from __future__ import annotations

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool

from server.auth import AdminDep, UserDep
from server.problems import documented
from server.schemas import UserOut
from server.schemas_access import GroupIn, GroupList, GroupOut, MemberIn, MemberList
from server.state import State

router = APIRouter(prefix="/groups", tags=["users"])


@router.get("", summary="Groups", responses=documented())
async def listing(principal: UserDep, state: State) -> GroupList:
    """All of them for administrators, for others those that they are in."""
    found = await run_in_threadpool(state.registry.people.groups, principal)
    return GroupList(groups=[GroupOut.model_validate(one) for one in found])


@router.post("", status_code=201, summary="Create a group", responses=documented(403, 409, 422))
async def create(sent: GroupIn, principal: AdminDep, state: State) -> GroupOut:
    """Without members, for administrators."""
    group = await run_in_threadpool(state.registry.people.create_group, principal, sent.name)
    return GroupOut.model_validate(group)


@router.delete("/{group_id}", status_code=204, summary="Remove a group", responses=documented(403, 404))
async def remove(group_id: str, principal: AdminDep, state: State) -> None:
    """With all that was shared with it, for administrators."""
    await run_in_threadpool(state.registry.people.delete_group, principal, group_id)


@router.get("/{group_id}/members", summary="A group's members", responses=documented(404))
async def members(group_id: str, principal: UserDep, state: State) -> MemberList:
    """For administrators and members."""
    found = await run_in_threadpool(state.registry.people.members, principal, group_id)
    return MemberList(members=[UserOut.model_validate(one) for one in found])


@router.post(
    "/{group_id}/members",
    status_code=201,
    summary="Put a user into a group",
    response_model=UserOut,
    responses={
        200: {"model": UserOut, "description": "They were in it already"},
        **documented(403, 404, 422),
    },
)
async def add_member(
    group_id: str, sent: MemberIn, response: Response, principal: AdminDep, state: State
) -> UserOut:
    """For administrators."""
    user, joined = await run_in_threadpool(state.registry.people.add_member, principal, group_id, sent.user)
    if not joined:
        response.status_code = 200
    return UserOut.model_validate(user)


@router.delete(
    "/{group_id}/members/{user_id}",
    status_code=204,
    summary="Take a user out of a group",
    responses=documented(403, 404),
)
async def remove_member(group_id: str, user_id: str, principal: AdminDep, state: State) -> None:
    """For administrators. What they stream by the group's grants is cut within 2 s."""
    await run_in_threadpool(state.registry.people.remove_member, principal, group_id, user_id)
