"""OpenAI's files: documents."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from server.auth import UserDep
from server.errors import InvalidRequestError, UnsupportedTypeError
from server.finetuning import file_of
from server.problems import documented
from server.recipes import complete_recipe
from server.routes.documents import begun
from server.schemas_finetuning import FileDeleted, FileList, FileOut
from server.state import State
from server.uploads import read_upload

router = APIRouter(prefix="/v1/files", tags=["OpenAI-compatible"])

_PURPOSES = ("fine-tune", "user_data", "assistants")
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "as of POST /documents",
                        },
                        "purpose": {"type": "string", "enum": list(_PURPOSES)},
                    },
                }
            }
        },
    }
}


@router.post(
    "", summary="Upload a document", responses=documented(400, 413, 415, 422, 429), openapi_extra=_FORM
)
async def upload(request: Request, response: Response, principal: UserDep, state: State) -> FileOut:
    """As `POST /documents` does it: it can be asked at once, and its training begins."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UnsupportedTypeError("Send a form, multipart/form-data, with `file` and `purpose`.")
    sent = await read_upload(request, state.intake)
    # What was read above is kept by the request.
    if (await request.form()).get("purpose") not in _PURPOSES:
        raise InvalidRequestError(f"purpose: send one of {', '.join(_PURPOSES)}.", param="purpose")
    recipe = complete_recipe(sent.recipe, state.recipe_limits)
    outcome = await run_in_threadpool(
        state.registry.add_document, principal, sent.title or "", sent.text, recipe
    )
    await begun(state, response, outcome)
    response.status_code = 200
    return file_of(outcome[0])


@router.get("", summary="Your documents", responses=documented(404, 422))
async def listing(
    principal: UserDep,
    state: State,
    limit: Annotated[int, Query(ge=1, le=10_000, description="most files to return; 100 at a time")] = 100,
    after: Annotated[str | None, Query(description="only files older than this one")] = None,
) -> FileList:
    """Newest first."""
    shown = min(limit, 100)
    found = await run_in_threadpool(state.registry.list_documents, principal, limit=shown + 1, before=after)
    files = [file_of(document) for document in found[:shown]]
    return FileList(
        data=files,
        has_more=len(found) > shown,
        first_id=files[0].id if files else None,
        last_id=files[-1].id if files else None,
    )


@router.get("/{document_id}", summary="A document", responses=documented(404))
async def retrieve(document_id: str, principal: UserDep, state: State) -> FileOut:
    """404 for what you may not read."""
    return file_of(await run_in_threadpool(state.registry.get_document, principal, document_id))


@router.delete(
    "/{document_id}", summary="Delete a document and its knowledge", responses=documented(404, 503)
)
async def delete(document_id: str, principal: UserDep, state: State) -> FileDeleted:
    """As `DELETE /documents/{id}` does it; `GET /receipts/{id}` has the receipt."""
    await state.deletions.forget(principal, document_id)
    return FileDeleted(id=document_id)
