"""Puts the web page into the application."""

from __future__ import annotations

from fastapi import FastAPI

from server.state import AppState
from server.web import asking, document, keys, listing, people, sharing, signing_in
from server.web.context import Web
from server.web.sessions import Sessions, session_secret


def install(app: FastAPI, state: AppState) -> None:
    """Add the page's routes. FileNotFoundError names an asset that the installation lacks."""
    secret = session_secret(state.settings.data_dir, state.settings.session_key)
    app.state.web = Web(Sessions(secret))
    for routes in (signing_in, listing, document, asking, sharing, keys, people):
        app.include_router(routes.router)
