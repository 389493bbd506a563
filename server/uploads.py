"""Reading an uploaded document from a request: JSON, or a file in a form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import UploadFile

from km_registry.errors import DocumentTooLargeError
from server.errors import (
    DamagedFileError,
    EncryptedFileError,
    InvalidRequestError,
    NoTextError,
    TooComplexFileError,
    UnreadableTextError,
    UnsupportedTypeError,
)
from server.intake.intake import Intake
from server.intake.refusal import Reason, RefusedFileError
from server.schemas import DocumentChangeIn, DocumentIn, RecipeIn

_REFUSALS: dict[Reason, type[Exception]] = {
    Reason.UNSUPPORTED: UnsupportedTypeError,
    Reason.ENCRYPTED: EncryptedFileError,
    Reason.NO_TEXT: NoTextError,
    Reason.DAMAGED: DamagedFileError,
    Reason.TOO_LARGE: DocumentTooLargeError,
    Reason.TOO_COMPLEX: TooComplexFileError,
}
_MAX_FIELD_BYTES = 64 * 1024
_FORM_RECIPE: TypeAdapter[dict[str, Any]] = TypeAdapter(RecipeIn)
_Sent = DocumentIn | DocumentChangeIn


@dataclass(frozen=True, slots=True)
class Upload:
    """What was sent. A title is missing only where it may stay as it is."""

    title: str | None
    text: str
    recipe: dict[str, Any] | None = None


async def read_upload(request: Request, intake: Intake) -> Upload:
    """The new document in the request; a file's name is its title, unless the form has one.

    Raises RequestRefusedError with what is wrong with the file or a field, RequestValidationError or
    DocumentTooLargeError. The request's body is bounded already.
    """
    return await _read(request, intake, DocumentIn)


async def read_change(request: Request, intake: Intake) -> Upload:
    """The new version of a document in the request, sent in the same ways. Raises as `read_upload`."""
    return await _read(request, intake, DocumentChangeIn)


async def _read(request: Request, intake: Intake, model: type[_Sent]) -> Upload:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match media_type:
        case "application/json":
            sent = _validated(model, _decoded(await request.body()))
            return Upload(sent.title, sent.text, sent.recipe)
        case "multipart/form-data":
            return await _from_form(request, intake, name_it=model is DocumentIn)
        case _:
            raise UnsupportedTypeError(
                f"Content-Type {media_type or '(none)'} is not taken. Send application/json with title and "
                "text, or multipart/form-data with a PDF, DOCX, HTML, Markdown or text file."
            )


def _validated(model: type[_Sent], body: str) -> _Sent:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_input=False, include_url=False)
        found = [{**one, "loc": ("body", *one["loc"])} for one in errors]
        raise RequestValidationError(found) from None


async def _from_form(request: Request, intake: Intake, *, name_it: bool) -> Upload:
    async with request.form(max_files=1, max_fields=8, max_part_size=_MAX_FIELD_BYTES) as form:
        file, title, recipe = form.get("file"), form.get("title"), form.get("recipe")
        if not isinstance(file, UploadFile):
            raise InvalidRequestError(
                "file: it is missing. Send the document in the form field `file`.", param="file"
            )
        if (file.size or 0) > intake.limits.file_bytes:
            raise DocumentTooLargeError(
                f"The file has {file.size} bytes, and this server takes {intake.limits.file_bytes}. "
                "Send it in parts, or have KM_MAX_FILE_BYTES raised."
            )
        name = PurePosixPath((file.filename or "").replace("\\", "/"))
        content = await file.read()
    given = title if isinstance(title, str) and title.strip() else None
    # Before the file, which takes longer to read.
    fields = _recipe_of(recipe)
    return Upload(given or (name.stem if name_it else None), await _text_of(content, intake), fields)


async def _text_of(content: bytes, intake: Intake) -> str:
    try:
        text = await intake.text_of(content)
    except RefusedFileError as refusal:
        raise _REFUSALS[refusal.reason](str(refusal)) from None
    return _decoded(content) if text is None else text


def _recipe_of(field: UploadFile | str | None) -> dict[str, Any] | None:
    if field is None or field == "":
        return None
    problem = 'recipe: it is not JSON. Send an object like {"preset": "fast"}, or leave it out.'
    if not isinstance(field, str):
        raise InvalidRequestError(problem, param="recipe")
    try:
        return _FORM_RECIPE.validate_json(field)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        said = problem if first["type"] == "json_invalid" else f"recipe: {first['msg']}."
        raise InvalidRequestError(said, param="recipe") from None


def _decoded(data: bytes) -> str:
    try:
        # Some editors put a byte order mark before UTF-8; it is no part of the text.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableTextError(
            f"The text is not UTF-8 (byte {error.start} cannot be read). Save it as UTF-8 and send it again."
        ) from None
