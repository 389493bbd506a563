"""Reading an uploaded document from a request: JSON, or a file in a form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from km_registry.errors import DocumentTooLargeError
from server.errors import InvalidRequestError, UnreadableTextError, UnsupportedTypeError
from server.schemas import DocumentIn

_SUFFIXES = (".txt", ".md")
#: How files begin that are often misnamed as text: PDF, ZIP (and with it DOCX), gzip, PNG, old Office.
_OTHER_TYPES = (b"%PDF-", b"PK\x03\x04", b"\x1f\x8b", b"\x89PNG", b"\xd0\xcf\x11\xe0")
_MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Upload:
    """What was sent."""

    title: str
    text: str
    recipe: dict[str, Any] | None = None


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """The document in the request.

    Raises UnsupportedTypeError, UnreadableTextError, InvalidRequestError, RequestValidationError or
    DocumentTooLargeError. The request's body is bounded already.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match media_type:
        case "application/json":
            return _from_json(await request.body())
        case "multipart/form-data":
            return await _from_form(request, max_bytes)
        case _:
            raise UnsupportedTypeError(
                f"Content-Type {media_type or '(none)'} is not taken. Send application/json with title and "
                "text, or multipart/form-data with a .txt or .md file."
            )


def _from_json(body: bytes) -> Upload:
    try:
        sent = DocumentIn.model_validate_json(_decoded(body))
    except ValidationError as error:
        raise RequestValidationError(
            [
                {**one, "loc": ("body", *one["loc"])}
                for one in error.errors(include_input=False, include_url=False)
            ]
        ) from None
    return Upload(sent.title, sent.text, sent.recipe)


async def _from_form(request: Request, max_bytes: int) -> Upload:
    async with request.form(max_files=1, max_fields=8, max_part_size=_MAX_FIELD_BYTES) as form:
        file, title = form.get("file"), form.get("title")
        if not isinstance(file, UploadFile):
            raise InvalidRequestError(
                "file: it is missing. Send the document in the form field `file`.", param="file"
            )
        if (file.size or 0) > max_bytes:
            raise DocumentTooLargeError(
                f"The file has {file.size} bytes, and this server takes {max_bytes}. Send it in parts, or "
                "have KM_MAX_DOCUMENT_BYTES raised."
            )
        name = PurePosixPath((file.filename or "").replace("\\", "/"))
        content = await file.read()
    if name.suffix.lower() not in _SUFFIXES or content.startswith(_OTHER_TYPES):
        raise UnsupportedTypeError
    return Upload(title if isinstance(title, str) and title.strip() else name.stem, _decoded(content))


def _decoded(data: bytes) -> str:
    try:
        # Some editors put a byte order mark before UTF-8; it is no part of the text.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableTextError(
            f"The text is not UTF-8 (byte {error.start} cannot be read). Save it as UTF-8 and send it again."
        ) from None
