"""What the Model Context Protocol offers: two tools, by the rule and in the words of the HTTP API.

Imported at the first request: it takes a second, which the start of a server need not wait for.
"""

from __future__ import annotations

from collections.abc import Awaitable
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import Field
from starlette.types import Receive, Scope, Send

from km_registry.types import Principal
from server.modes import Mode
from server.problems import PROBLEMS, error_body
from server.questions import Question
from server.routes import documents
from server.schemas import DocumentList
from server.schemas_answer import MAX_PASSAGES, AnswerOut
from server.state import AppState, app_state

_INSTRUCTIONS = (
    "Documents that a model has learned. list_documents says which there are; ask answers a question from "
    "one of them. An answer is a small model's: the passages that come with it are the document's own words."
)
_LOOKS_ONLY = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_T = TypeVar("_T")

_server = MCPServer("KM Server", version=version("km-server"), instructions=_INSTRUCTIONS)


@_server.tool(annotations=_LOOKS_ONLY)
async def list_documents(
    context: Context,
    before: Annotated[str | None, Field(description="next_before of the page before")] = None,
) -> DocumentList:
    """List the documents that can be asked, newest first, with how far their training is."""
    principal, state = _caller(context)
    return await _told(documents.listing(principal, state, limit=100, before=before))


@_server.tool(annotations=_LOOKS_ONLY)
async def ask(
    context: Context,
    document_id: Annotated[str, Field(description="id of the document, as list_documents has it")],
    question: Annotated[str, Field(min_length=1)],
    mode: Annotated[
        Mode, Field(description="auto takes what is best; km: no text in the prompt; rag: passages; icl: all")
    ] = Mode.AUTO,
    k: Annotated[int | None, Field(ge=1, le=MAX_PASSAGES, description="how many passages")] = None,
) -> AnswerOut:
    """Ask a document. The answer comes with the passages that it rests on, if it rests on any."""
    principal, state = _caller(context)
    asked = Question(document_id=document_id, question=question, mode=mode, k=k)
    found = await _told(state.answerer.answer(principal, asked))
    state.metrics.answer(found.mode, found.milliseconds)
    return AnswerOut.model_validate(found)


async def answered(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer this one request, whose state has the principal, and end with it."""
    # Who has the key is no page of a foreign origin, so there is nothing for such a check to add.
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    _server.streamable_http_app(stateless_http=True, json_response=True, transport_security=unchecked)
    # This request's own: made and taken without an await between.
    manager = _server.session_manager
    async with manager.run():
        await manager.handle_request(scope, receive, send)


def _caller(context: Context) -> tuple[Principal, AppState]:
    request: Any = context.request_context.request
    principal: Principal = request.state.principal
    return principal, app_state(request)


async def _told(work: Awaitable[_T]) -> _T:
    """What it comes to. A refusal is told the model in the words that every route has for it."""
    try:
        return await work
    except tuple(PROBLEMS) as refusal:
        raise ToolError(error_body(refusal)["error"]["message"]) from refusal
