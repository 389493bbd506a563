"""KMs as files: exported for other programs and servers, imported from other servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile

from server import transfer
from server.auth import UserDep
from server.errors import InvalidRequestError, UnsupportedTypeError
from server.problems import documented
from server.routes.documents import detail
from server.schemas import DocumentDetail
from server.state import State

router = APIRouter(tags=["documents"])

_PIECE = 1024 * 1024
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "the ZIP that `GET /documents/{id}/km?text=true` gave",
                        },
                        "title": {"type": "string", "description": "as it was called there by default"},
                    },
                }
            }
        },
    }
}


@router.get(
    "/documents/{document_id}/km",
    summary="Export the KM",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/zip": {}}, "description": "A PEFT adapter with its manifest, as ZIP"},
        **documented(404, 409, 422),
    },
)
async def export(
    document_id: str,
    principal: UserDep,
    state: State,
    text: Annotated[bool, Query(description="with the document's text, to import it elsewhere")] = False,
) -> StreamingResponse:
    """For owners: what leaves is reached by no deletion. 409 when there is no KM."""
    km, file = await transfer.packed(state, principal, document_id, with_text=text)
    name = {"Content-Disposition": f'attachment; filename="{km.id}.zip"'}
    return StreamingResponse(_pieces(file), media_type="application/zip", headers=name)


@router.post(
    "/documents/import",
    status_code=201,
    summary="Import a KM with its document",
    responses=documented(409, 413, 415, 422, 429),
    openapi_extra=_FORM,
)
async def import_km(request: Request, principal: UserDep, state: State) -> DocumentDetail:
    """It answers at once, without a training. It has to be for the base model that is served here, and is
    examined as one of our own: whole, finite, of the right shapes, trained on the text that comes with it."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UnsupportedTypeError("Send a form, multipart/form-data, with `file`.")
    async with request.form(max_files=1, max_fields=4) as form:
        file, title = form.get("file"), form.get("title")
        if not isinstance(file, UploadFile):
            raise InvalidRequestError(
                "file: it is missing. Send the ZIP in the form field `file`.", param="file"
            )
        named = title if isinstance(title, str) and title.strip() else None
        document = await transfer.taken(state, principal, file.file, named)
    return await detail(document.id, principal, state)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece
