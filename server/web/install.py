"""Puts the web page into the application."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from server.state import AppState
from server.web import asking, document, keys, listing, people, sharing, signing_in, workers
from server.web.context import Web
from server.web.sessions import Sessions, session_secret


def install(app: FastAPI, state: AppState) -> None:
    """Add the page's routes. FileNotFoundError names an asset that the installation lacks."""
    secret = session_secret(state.settings.data_dir, state.settings.session_key)
    app.state.web = Web(Sessions(secret))
    app.router.routes.extend(_routes())


@cache
def _routes() -> Sequence[BaseRoute]:
    # Once for all applications of a process, as those of the API.
    router = APIRouter()
    for routes in (signing_in, listing, document, asking, sharing, keys, people, workers):
        router.include_router(routes.router)
    return tuple(router.routes)
