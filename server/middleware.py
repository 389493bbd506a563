"""Around every request: a bound on its body, a log line, a count, a span. Plain ASGI: streams pass."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from km_registry.tracing import Span, Tracing
from server.errors import BodyTooLargeError
from server.metrics import Metrics

_log = structlog.get_logger(__name__)

_KIB = 1024
_MULTIPART_OVERHEAD = 64 * _KIB
#: One byte of UTF-8 may be six in JSON: \u0001.
_JSON_EXPANSION = 6
REQUEST_ID = "X-Request-ID"
#: Any other is the client's text.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


def body_limit(
    scope: Scope, max_document_bytes: int, max_file_bytes: int, max_import_bytes: int
) -> tuple[int, str]:
    """Most bytes that a request's body may have, and what to do about a larger one."""
    # The page sends files to routes of its own.
    path = scope["path"].removeprefix("/ui")
    if path == "/documents/import":
        return max_import_bytes + _MULTIPART_OVERHEAD, (
            f"The KM is larger than the {max_import_bytes} bytes that this server takes. "
            "Have KM_MAX_IMPORT_BYTES raised."
        )
    changes = scope["method"] == "PUT" and path.startswith("/documents/")
    if path in ("/documents", "/v1/files") or changes:
        if Headers(scope=scope).get("content-type", "").startswith("application/json"):
            bound, most, setting = max_document_bytes * _JSON_EXPANSION, max_document_bytes, "DOCUMENT"
        else:
            bound, most, setting = max_file_bytes, max_file_bytes, "FILE"
        return bound + _MULTIPART_OVERHEAD, (
            f"The document is larger than the {most} bytes that this server takes. "
            f"Send it in parts, or have KM_MAX_{setting}_BYTES raised."
        )
    bound = 8 * _KIB * _KIB if path.startswith("/v1/") else _KIB * _KIB
    return (
        bound,
        f"The request's body is larger than the {bound} bytes that this route takes. Send less at once.",
    )


def _request_id(scope: Scope) -> str:
    """The client's own where it sends a plain one, so that its log and ours can be laid side by side."""
    sent = Headers(scope=scope).get(REQUEST_ID, "")
    return sent if _PLAIN_ID.fullmatch(sent) else f"req_{secrets.token_hex(10)}"


class BodyLimit:
    """Ends the reading of a body that is too large: before its first byte when its length is declared."""

    def __init__(self, app: ASGIApp, limit: Callable[[Scope], tuple[int, str]]) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a bounded `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bound, message = self._limit(scope)
        declared = Headers(scope=scope).get("content-length", "")
        read = int(declared) if declared.isdecimal() and int(declared) > bound else 0

        async def bounded() -> Message:
            nonlocal read
            # Raised here and not answered here, so that a missing key is still the first thing refused.
            if read > bound:
                raise BodyTooLargeError(message)
            part = await receive()
            read += len(part.get("body", b""))
            if read > bound:
                raise BodyTooLargeError(message)
            return part

        await self._app(scope, bounded, send)


class RequestLog:
    """Logs, counts and traces requests by route template, each with an id that the answer bears too. Never
    their content, query or key."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500
        request_id = _request_id(scope)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        span = self._tracing.begin(
            "request", Headers(scope=scope).get("traceparent"), kind="server", request_id=request_id
        )
        # On every line that is logged on the request's behalf, also by what it leaves to go on behind it.
        with structlog.contextvars.bound_contextvars(request_id=request_id), span:
            try:
                await self._app(scope, receive, noting)
            finally:
                self._note(scope, status, (time.perf_counter() - began) * 1000, span)

    def _note(self, scope: Scope, status: int, milliseconds: float, span: Span) -> None:
        # A path that no route has is the client's text, and unbounded as a label.
        route = getattr(scope.get("route"), "path", "(none)")
        ids = {
            "user_id": scope.get("state", {}).get("user_id"),
            "document_id": scope.get("path_params", {}).get("document_id") if status < 400 else None,
        }
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        self._metrics.request(method, route, status)
        _log.info(
            "request",
            method=method,
            route=route,
            status=status,
            milliseconds=round(milliseconds, 1),
            **ids,
        )
        http = {"request.method": method, "route": route, "response.status_code": status}
        span.rename(f"{method} {route}")
        span.set(**{f"http.{name}": value for name, value in http.items()}, **ids)
        if status >= 500:
            span.fail(str(status))
