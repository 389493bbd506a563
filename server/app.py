"""The HTTP application, put together from its parts. Whoever makes the parts also starts and stops them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from server import middleware, problems
from server.routes import (
    answer,
    audit,
    documents,
    grants,
    groups,
    health,
    kes,
    keys,
    kms,
    mcp,
    openai,
    openai_files,
    openai_jobs,
    recipes,
    removals,
    users,
    workers,
)
from server.state import AppState
from server.web import install as page

__all__ = ["AppState", "create_app", "description"]

_DESCRIPTION = """\
Documents become Knowledge Modules (KMs): small LoRA adapters that a base model answers from, with only the
question in its prompt. Upload a document, follow its training, ask it, delete it and its knowledge is gone.

Send your API key with every request: `Authorization: Bearer km_…`. You see your documents and those that are
shared with you; anything else looks as if it did not exist. Every refusal is
`{"error": {"message", "type", "param", "code"}}`, and its message says what to change.
"""

_TAGS = [
    {"name": "documents", "description": "Upload, follow the training, delete."},
    {"name": "answers", "description": "Ask a document."},
    {"name": "KEs", "description": "Knowledge Extractors, which make answers better with a KM or without."},
    {
        "name": "OpenAI-compatible",
        "description": "For OpenAI's clients: chats, files, trainings.",
    },
    {"name": "Model Context Protocol", "description": "Documents as tools of a language model."},
    {"name": "sharing", "description": "Who else may read and ask a document, for its owners."},
    {"name": "users", "description": "Users and groups, for administrators."},
    {"name": "keys", "description": "API keys: make, list, revoke."},
    {"name": "audit", "description": "Who did or tried what."},
    {"name": "operation", "description": "Health and metrics."},
]


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The description, with the refusals that every route shares."""
        if not self.openapi_schema:
            problems.describe(super().openapi())
        return super().openapi()


def create_app(state: AppState) -> FastAPI:
    """The application that serves from `state`."""
    app = _app_with_routes()
    app.state.km = state
    problems.install(app)
    page.install(app, state)
    limit = partial(
        middleware.body_limit,
        max_document_bytes=state.settings.max_document_bytes,
        max_file_bytes=state.intake.limits.file_bytes,
        max_import_bytes=state.settings.max_import_bytes,
    )
    app.add_middleware(middleware.BodyLimit, limit=limit)
    app.add_middleware(middleware.RequestLog, metrics=state.metrics, tracing=state.tracing)
    return app


def description() -> dict[str, Any]:
    """OpenAPI's description of the API, without anything that serves it."""
    return _app_with_routes().openapi()


def _app_with_routes() -> FastAPI:
    app = _Application(
        title="KM Server",
        version=version("km-server"),
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        # Described to those who have a key, by a route of our own; the pages need a network to load.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.router.routes.extend(_routes())
    return app


@cache
def _routes() -> Sequence[BaseRoute]:
    # Once for all applications of a process: FastAPI takes half a second to look at every parameter.
    router = APIRouter()
    asking = (answer, openai, openai_files, openai_jobs, mcp)
    api = (
        documents,
        kms,
        removals,
        grants,
        recipes,
        *asking,
        kes,
        users,
        groups,
        keys,
        audit,
        workers,
        health,
    )
    for routes in api:
        router.include_router(routes.router)
    return tuple(router.routes)
