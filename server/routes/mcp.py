"""The Model Context Protocol, by streamable HTTP.

Every request stands for itself: there are no sessions, so nothing is kept between two requests and any of
several servers may answer the next one.
"""

from __future__ import annotations

from importlib import import_module

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from server.auth import UserDep
from server.problems import documented

router = APIRouter(tags=["Model Context Protocol"])

#: What the protocol's own server refuses, in JSON-RPC's shape.
_PROTOCOL: dict[int | str, str] = {
    400: "No JSON-RPC request, or for a version of the protocol that is not spoken",
    406: "The client does not accept application/json",
    413: "Larger than this route takes",
    415: "The body is not application/json",
}
_EXAMPLE = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


@router.post(
    "/mcp",
    summary="Documents as tools: streamable HTTP, stateless",
    response_class=Response,
    responses={
        200: {"content": {"application/json": {}}, "description": "JSON-RPC 2.0, as the protocol has it"},
        202: {"description": "A notification was taken"},
        **{status: {"description": said} for status, said in _PROTOCOL.items()},
        **documented(429),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}, "example": _EXAMPLE}},
        }
    },
)
async def endpoint(request: Request, principal: UserDep) -> Response:
    """For MCP clients: tools `list_documents` and `ask`, for what your API key may read and ask."""
    request.state.principal = principal
    return _Answered()


class _Answered(Response):
    """What the protocol's own server answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request over."""
        tools = await run_in_threadpool(import_module, "server.mcp_tools")
        await tools.answered(scope, receive, send)
