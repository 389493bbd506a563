"""Removal of a KM alone, of a former version, of a user with all they own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from server.auth import AdminDep, UserDep
from server.problems import documented
from server.schemas import RemovalOut
from server.state import State

router = APIRouter()


@router.delete(
    "/documents/{document_id}/km",
    tags=["documents"],
    summary="Delete a document's KM, and keep the document",
    responses=documented(404, 409, 503),
)
async def delete_km(document_id: str, principal: UserDep, state: State) -> RemovalOut:
    """Modes `rag` and `icl` go on answering; `km` does once it is trained again, when you ask for that. A
    training that is under way is cancelled. Returns the receipt."""
    return RemovalOut.model_validate(await state.removing.km(principal, document_id))


@router.delete(
    "/documents/{document_id}/versions/{version}",
    tags=["documents"],
    summary="Delete a former version",
    responses=documented(404, 409, 422, 503),
)
async def delete_version(
    document_id: str, version: Annotated[int, Path(ge=1, le=2**31 - 1)], principal: UserDep, state: State
) -> RemovalOut:
    """Its KM, if that answers still, its trainings and what is known of its text. 409 for the newest."""
    return RemovalOut.model_validate(await state.removing.version(principal, document_id, version))


@router.delete(
    "/users/{user_id}",
    tags=["users"],
    summary="Delete a user with all they own",
    responses=documented(403, 404, 409, 503),
)
async def delete_user(user_id: str, principal: AdminDep, state: State) -> RemovalOut:
    """Their keys end at once, and every document that they uploaded is deleted, whoever it is shared with."""
    return RemovalOut.model_validate(await state.removing.user(principal, user_id))
