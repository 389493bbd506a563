"""Sharing a document with users and groups."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool

from server.auth import UserDep
from server.problems import documented
from server.schemas_access import GrantIn, GrantList, GrantOut
from server.state import State

router = APIRouter(prefix="/documents/{document_id}/grants", tags=["sharing"])


@router.get("", summary="Who may do what with a document", responses=documented(404))
async def listing(document_id: str, principal: UserDep, state: State) -> GrantList:
    """For its owners."""
    found = await run_in_threadpool(state.registry.people.grants, principal, document_id)
    return GrantList(grants=[GrantOut.model_validate(one) for one in found])


@router.post(
    "",
    status_code=201,
    summary="Share a document",
    response_model=GrantOut,
    responses={
        200: {"model": GrantOut, "description": "They held a role before; now they hold this one"},
        **documented(404, 409, 422),
    },
)
async def share(
    document_id: str, sent: GrantIn, response: Response, principal: UserDep, state: State
) -> GrantOut:
    """Give a user or a group a role, or another role than before. For owners."""
    share = partial(state.registry.people.share, user=sent.user, group=sent.group, role=sent.role)
    grant, created = await run_in_threadpool(share, principal, document_id)
    if not created:
        response.status_code = 200
    return GrantOut.model_validate(grant)


@router.delete(
    "/{principal_id}", status_code=204, summary="Share it no longer", responses=documented(404, 409)
)
async def unshare(document_id: str, principal_id: str, principal: UserDep, state: State) -> None:
    """Take a user's (`usr_…`) or a group's (`grp_…`) role; their running streams are cut within 2 s."""
    await run_in_threadpool(state.registry.people.unshare, principal, document_id, principal_id)
