"""Signing in with an API key, and out; and the files that every page loads."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from km_registry.errors import NotFoundError
from server.auth import admit
from server.state import State
from server.web.access import ChangerDep, check_token, remember_visit, sign_in, sign_out, visit_of
from server.web.context import Web, WebDep
from server.web.page_route import SIGN_IN, PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_UNKNOWN = "This key is not known here, was revoked or has expired. Check that you pasted all of it."
_YEAR = "public, max-age=31536000, immutable"


@router.get(SIGN_IN, response_class=Response)
async def form(request: Request, web: WebDep, to: str = "/") -> Response:
    """Where an API key is asked for."""
    return _form(request, web, to=to, problem=None)


@router.post(SIGN_IN, response_class=Response)
async def enter(
    request: Request,
    web: WebDep,
    state: State,
    key: Annotated[str, Form(max_length=300)] = "",
    to: Annotated[str, Form(max_length=300)] = "/",
) -> Response:
    """Begin a session with the key."""
    await check_token(request, web, visit_of(request))
    principal = await run_in_threadpool(state.registry.authenticate, key.strip())
    if principal is None or principal.key_id is None:
        return _form(request, web, to=to, problem=_UNKNOWN)
    await run_in_threadpool(admit, request, state, principal)
    response = RedirectResponse(_within(to), status_code=303)
    sign_in(request, response, web.sessions.begin(principal.key_id))
    return response


@router.post("/ui/sign-out", response_class=Response)
async def leave(_: ChangerDep) -> Response:
    """End the session in this browser."""
    response = RedirectResponse(SIGN_IN, status_code=303)
    sign_out(response)
    return response


@router.get("/ui/static/{name}", response_class=Response)
async def asset(name: str, request: Request, web: WebDep) -> Response:
    """A file of the page."""
    found = web.assets.get(name)
    if found is None:
        raise NotFoundError
    packed = "gzip" in request.headers.get("accept-encoding", "")
    headers = {"Cache-Control": _YEAR, "Vary": "Accept-Encoding"}
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(found.packed if packed else found.content, media_type=found.media_type, headers=headers)


def _form(request: Request, web: Web, *, to: str, problem: str | None) -> Response:
    visit = visit_of(request)
    response = web.page(
        "sign-in.html",
        status=200 if problem is None else 401,
        token=web.sessions.token(visit),
        to=_within(to),
        problem=problem,
    )
    remember_visit(request, response, visit)
    return response


def _within(to: str) -> str:
    """The place on this page to go to; never another host."""
    return to if to.startswith("/ui/") else "/"
