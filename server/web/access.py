"""Who uses the page: the session's cookie, the key behind it, and the token that every form sends."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from km_registry.access import may_administer
from km_registry.types import Principal, User
from server.auth import admit
from server.errors import ForbiddenError, UnauthenticatedError
from server.state import State
from server.web.context import WebDep
from server.web.sessions import LIFETIME_S

_SESSION, _VISIT = "km_session", "km_visit"
_FORM = "application/x-www-form-urlencoded"


class ForeignFormError(ForbiddenError):
    """This form is not of this page, or you signed in anew since it was opened. Reload the page."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is signed in, and the token that their forms send."""

    principal: Principal
    user: User
    token: str

    @property
    def may_administer(self) -> bool:
        """Whether the pages for administrators are theirs."""
        return may_administer(self.principal)


async def visitor(request: Request, state: State, web: WebDep) -> Visitor:
    """Who is signed in. UnauthenticatedError for nobody, also once the session's key works no more."""
    value = request.cookies.get(_SESSION, "")
    key_id = web.sessions.key_id(value)
    principal = None
    if key_id is not None:
        principal = await run_in_threadpool(state.registry.people.holder, key_id)
    if principal is None:
        raise UnauthenticatedError("Sign in with an API key.")
    await run_in_threadpool(admit, request, state, principal)
    user = await run_in_threadpool(state.registry.people.user, principal.user_id)
    return Visitor(principal, user, web.sessions.token(value))


VisitorDep = Annotated[Visitor, Depends(visitor)]


async def changing(request: Request, found: VisitorDep, web: WebDep) -> Visitor:
    """Who is signed in and sent this from a form of the page. ForeignFormError otherwise."""
    await check_token(request, web, request.cookies.get(_SESSION, ""))
    return found


#: For every route that changes something.
ChangerDep = Annotated[Visitor, Depends(changing)]


async def administrator(found: VisitorDep) -> Visitor:
    """The administrator who is signed in. ForbiddenError for anyone else."""
    if not found.may_administer:
        raise ForbiddenError("This page is for administrators.")
    return found


AdministratorDep = Annotated[Visitor, Depends(administrator)]


async def administering(found: ChangerDep) -> Visitor:
    """The administrator who is signed in and sent this from a form of the page."""
    return await administrator(found)


AdministeringDep = Annotated[Visitor, Depends(administering)]


async def check_token(request: Request, web: WebDep, cookie: str) -> None:
    """ForeignFormError unless the request carries the token that belongs to the cookie."""
    token = request.headers.get("x-csrf-token")
    if token is None and request.headers.get("content-type", "").startswith(_FORM):
        field = (await request.form()).get("csrf")
        token = field if isinstance(field, str) else None
    if not cookie or token is None or not web.sessions.is_token(cookie, token):
        raise ForeignFormError


def visit_of(request: Request) -> str:
    """The cookie of who is not signed in yet; by its token nobody else signs them in as somebody else."""
    return request.cookies.get(_VISIT) or secrets.token_urlsafe(24)


def remember_visit(request: Request, response: Response, visit: str) -> None:
    """Set that cookie."""
    _set(request, response, _VISIT, visit, None)


def sign_in(request: Request, response: Response, session: str) -> None:
    """Set the session's cookie."""
    _set(request, response, _SESSION, session, LIFETIME_S)
    response.delete_cookie(_VISIT)


def sign_out(response: Response) -> None:
    """Drop the session's cookie."""
    response.delete_cookie(_SESSION)


def _set(request: Request, response: Response, name: str, value: str, lifetime_s: int | None) -> None:
    response.set_cookie(
        name,
        value,
        max_age=lifetime_s,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
