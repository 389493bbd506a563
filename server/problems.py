"""The one map from exceptions to HTTP: which status each refusal has, and the shape of every error."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from km_registry import errors as registry
from server import errors as http
from server.engine.base import (
    AdapterGoneError,
    AdapterLoadError,
    EngineUnavailableError,
    UnsupportedRequestError,
)
from server.engine.guarded import CallerBusyError, EngineBusyError, RequestTimeoutError
from server.fencing import FencedError
from server.fleet import NotAcknowledgedError
from server.retrieval.base import RetrievalUnavailableError
from server.schemas import ErrorOut

_log = structlog.get_logger(__name__)

_NOT_FOUND = (
    "There is no such thing here, or it is not yours. Check the id, or list yours with GET /documents."
)
_POSTGRESQL_FULL = "53100"
_RETRY = {"Retry-After": "5"}


@dataclass(frozen=True, slots=True)
class Problem:
    """How an exception looks from outside. `message` None says what the exception says."""

    status: int
    type: str
    code: str | None = None
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


#: Looked up along the exception's classes, so a subclass may have its own line or share its parent's.
PROBLEMS: Mapping[type[Exception], Problem] = {
    http.UnauthenticatedError: Problem(
        401, "authentication_error", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
    ),
    http.ForbiddenError: Problem(403, "permission_error", "forbidden"),
    registry.NotAllowedError: Problem(403, "permission_error", "forbidden"),
    registry.InvalidValueError: Problem(422, "invalid_request_error", "invalid_field"),
    registry.QuotaError: Problem(429, "rate_limit_error", "quota_exceeded"),
    http.RateLimitedError: Problem(429, "rate_limit_error", "rate_limited"),
    # Always the same words: whether a thing exists is its owner's business.
    registry.NotFoundError: Problem(404, "not_found_error", "not_found", _NOT_FOUND),
    registry.ConflictError: Problem(409, "conflict_error", "conflict"),
    http.NotTrainedError: Problem(409, "conflict_error", "km_not_trained"),
    registry.StaleAttemptError: Problem(409, "conflict_error", "stale_attempt"),
    registry.DocumentTooLargeError: Problem(413, "invalid_request_error", "too_large"),
    registry.InvalidDocumentError: Problem(422, "invalid_request_error", "invalid_document"),
    http.UnreadableTextError: Problem(400, "invalid_request_error", "not_utf8"),
    http.UnsupportedTypeError: Problem(415, "invalid_request_error", "unsupported_type"),
    http.EncryptedFileError: Problem(422, "invalid_request_error", "encrypted_file"),
    http.NoTextError: Problem(422, "invalid_request_error", "no_text"),
    http.DamagedFileError: Problem(422, "invalid_request_error", "damaged_file"),
    http.TooComplexFileError: Problem(422, "invalid_request_error", "too_complex"),
    http.InvalidRequestError: Problem(422, "invalid_request_error", "invalid_field"),
    http.InvalidRecipeError: Problem(422, "invalid_request_error", "invalid_recipe"),
    http.UnknownKEError: Problem(404, "not_found_error", "ke_not_found"),
    http.NoKEError: Problem(409, "conflict_error", "no_ke"),
    registry.InvalidKEError: Problem(422, "invalid_request_error", "invalid_ke"),
    http.PromptTooLongError: Problem(422, "invalid_request_error", "context_length_exceeded"),
    UnsupportedRequestError: Problem(422, "invalid_request_error", "unsupported"),
    http.ClientGoneError: Problem(499, "invalid_request_error", "client_gone"),
    ClientDisconnect: Problem(499, "invalid_request_error", "client_gone", "The client went away."),
    EngineUnavailableError: Problem(503, "server_error", "engine_unavailable", headers=_RETRY),
    FencedError: Problem(503, "server_error", "gateway_out_of_touch", headers=_RETRY),
    NotAcknowledgedError: Problem(
        503,
        "server_error",
        "deletion_pending",
        "It is gone for everybody, but another gateway still has to let go of it; that goes on by itself.",
        _RETRY,
    ),
    # It was there when the request came; now it is as if it had never been.
    AdapterGoneError: Problem(404, "not_found_error", "not_found", _NOT_FOUND),
    AdapterLoadError: Problem(
        500,
        "server_error",
        "artifact_damaged",
        "The KM is damaged, or not for the model that is served. Train the document again; modes rag and icl "
        "answer meanwhile.",
    ),
    EngineBusyError: Problem(503, "server_error", "overloaded"),
    CallerBusyError: Problem(429, "rate_limit_error", "too_many_requests"),
    RequestTimeoutError: Problem(504, "server_error", "timeout"),
    RetrievalUnavailableError: Problem(503, "server_error", "retrieval_unavailable", headers=_RETRY),
    http.StoppingError: Problem(503, "server_error", "stopping", headers=_RETRY),
    http.DeletionPendingError: Problem(503, "server_error", "deletion_pending", headers=_RETRY),
    http.RemovalPendingError: Problem(503, "server_error", "removal_pending", headers=_RETRY),
    registry.ArtifactError: Problem(500, "server_error", "artifact_damaged"),
    registry.StoreUnavailableError: Problem(
        503,
        "server_error",
        "store_unavailable",
        "The store of texts and KMs cannot be used now, and nothing of this was kept. Try again in a moment.",
        _RETRY,
    ),
    RedisError: Problem(
        503,
        "server_error",
        "queue_unavailable",
        "The job queue cannot be reached. Try again in a moment.",
        _RETRY,
    ),
    OperationalError: Problem(
        503,
        "server_error",
        "database_unavailable",
        "The database is busy or away. Try again in a moment.",
        _RETRY,
    ),
}

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


def install(app: FastAPI) -> None:
    """Have the app answer every exception in the one shape."""
    for error in PROBLEMS:
        app.add_exception_handler(error, mapped)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(OSError, _system)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may refuse with these statuses, beside 401."""
    return {status: {"model": ErrorOut, "description": _MEANINGS[status]} for status in (401, *statuses)}


#: The `responses` of a route that answers whole or as a stream.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, server-sent events of its pieces",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}

#: Wherever a key is needed: limits, a database that is away.
_WITH_KEY = (429, 503)
#: Wherever something is sent: not UTF-8, too large, not as it should be; and no room for it.
_WITH_BODY = (400, 413, 422, 507)
_MEANINGS = {
    400: "The body cannot be read: not UTF-8, or not the type that it says it is",
    401: "No API key, or one that is not known",
    403: "This key may not do that",
    404: "There is no such thing, or it is not yours",
    409: "It does not fit the state of things; the message says which state that is",
    413: "Larger than this server takes",
    415: "A type of file that is not taken",
    422: "A field cannot be taken as it is; the message names it",
    429: "Too many requests of yours; Retry-After says when to try again",
    503: "Something that is needed is not running, or too much is going on; try again",
    504: "It took longer than this server lets",
    507: "The server's disk is full",
}


def describe(spec: dict[str, Any]) -> None:
    """Complete an OpenAPI description by the refusals that no route has to name. Idempotent.

    What FastAPI says of 422 is the shape that it would have without us.
    """
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorOut"}}}
    for operations in spec["paths"].values():
        for operation in operations.values():
            statuses = {*(_WITH_KEY if "security" in operation else ())}
            statuses |= {*(_WITH_BODY if "requestBody" in operation else ())}
            responses = operation["responses"]
            for status in (str(one) for one in sorted(statuses)):
                responses.setdefault(status, {"description": _MEANINGS[int(status)], "content": refusal})
            if "HTTPValidationError" in str(responses.get("422")):
                responses["422"] = {"description": _MEANINGS[422], "content": refusal}
    for name in ("HTTPValidationError", "ValidationError"):
        spec["components"]["schemas"].pop(name, None)


def problem(
    status: int,
    type_: str,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error response in OpenAI's shape, which every route shares."""
    body = {"error": {"message": message, "type": type_, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)


def error_body(error: Exception) -> dict[str, Any]:
    """What an error response says of one of PROBLEMS, for a stream whose status has been sent."""
    found = _found(error)
    message = found.message if found.message is not None else str(error)
    param = getattr(error, "param", None)
    return {"error": {"message": message, "type": found.type, "param": param, "code": found.code}}


def _found(error: Exception) -> Problem:
    return next(PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS)


async def mapped(_: Request, error: Exception) -> JSONResponse:
    """How one of PROBLEMS is answered."""
    found = _found(error)
    if found.status >= 500:
        _log.warning("unavailable", error=type(error).__name__)
    headers = dict(found.headers)
    if (retry_after_s := getattr(error, "retry_after_s", None)) is not None:
        headers["Retry-After"] = str(retry_after_s)
    return JSONResponse(error_body(error), status_code=found.status, headers=headers)


async def _database(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OperationalError)
    full = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    if full or getattr(error.orig, "sqlstate", None) == _POSTGRESQL_FULL:
        return _disk_full()
    return await mapped(request, error)


async def _system(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full()
    raise error


def _disk_full() -> JSONResponse:
    _log.error("the disk is full")
    return problem(
        507,
        "server_error",
        "The server's disk is full, and nothing of this was kept. Try again when its operator has made room.",
        code="disk_full",
    )


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    message = "; ".join(_line(one) for one in errors[:3])
    param = _field(errors[0]["loc"]) if errors else None
    return problem(422, "invalid_request_error", message, code="invalid_field", param=param)


def _line(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"The body is not valid JSON ({error.get('ctx', {}).get('error', 'it cannot be parsed')})."
    field_name = _field(error["loc"])
    if field_name is None:
        return "The body must be a JSON object, sent as Content-Type: application/json."
    if error["type"] == "extra_forbidden":
        return f"{field_name}: there is no such field. Leave it out or correct its name."
    # Pydantic's message may carry what a validator said, never the value that was sent.
    return f"{field_name}: {error['msg']}."


def _field(location: Sequence[str | int]) -> str | None:
    places = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    return ".".join(str(place) for place in places) or None


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message, code = str(error.detail), None
    if error.status_code == 404:
        message, code = (
            "There is no such route. GET /openapi.json describes those that there are.",
            "no_such_route",
        )
    elif error.status_code == 405:
        message = "This route does not take this method. GET /openapi.json describes what it takes."
    elif error.status_code == 413:
        code = "too_large"
    elif isinstance(error.__cause__, UnicodeDecodeError):
        message, code = "The body is not UTF-8. Send it encoded as UTF-8.", "not_utf8"
    type_ = _TYPES.get(error.status_code, "invalid_request_error")
    return problem(error.status_code, type_, message, code=code, headers=error.headers)


async def _unexpected(_: Request, error: Exception) -> JSONResponse:
    # Neither message nor arguments: they may quote a document.
    _log.error("unexpected error", error=type(error).__name__)
    return problem(
        500,
        "server_error",
        "Something went wrong in the server. Its log says what; try again.",
        code="internal",
    )
