"""Who is calling. Asked anew for every request, so that a revoked key stops working at once."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from km_registry.access import may_administer
from km_registry.types import Principal
from server.callers import Caller, InternalService
from server.errors import ForbiddenError, UnauthenticatedError
from server.state import AppState, State

_bearer = HTTPBearer(
    scheme_name="API key",
    description="An API key (`km_…`), printed at the first start, or given by `POST /users` or `POST /keys`.",
    auto_error=False,
)


async def caller(
    request: Request,
    state: State,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """The caller behind the request's key. UnauthenticatedError without one that works.

    RateLimitedError when it has sent too many requests.
    """
    if credentials is None:
        raise UnauthenticatedError
    secret = credentials.credentials
    internal = state.settings.internal_key
    if internal and hmac.compare_digest(secret.encode(), internal.encode()):
        return InternalService()
    return await run_in_threadpool(_known, request, state, secret)


def _known(request: Request, state: AppState, secret: str) -> Principal:
    """The principal whose secret this is, once admitted. Blocking, and one: a thread costs as much as a
    look-up."""
    principal = state.registry.authenticate(secret)
    if principal is None:
        raise UnauthenticatedError(
            "This API key is not known here, was revoked or has expired. Check it, or ask for another."
        )
    admit(request, state, principal)
    return principal


def admit(request: Request, state: AppState, principal: Principal) -> None:
    """Note the principal for the log and count the request. RateLimitedError when there are too many.
    Blocking."""
    request.state.user_id = principal.user_id
    if state.limiter.limits_requests:
        state.limiter.request(principal)


CallerDep = Annotated[Caller, Depends(caller)]


async def user(found: CallerDep) -> Principal:
    """The calling user. ForbiddenError for the internal key."""
    if isinstance(found, InternalService):
        raise ForbiddenError("The internal key may only call POST /v1/completions. Use a user's API key.")
    return found


UserDep = Annotated[Principal, Depends(user)]


async def admin(found: UserDep) -> Principal:
    """The calling administrator. ForbiddenError for anyone else."""
    if not may_administer(found):
        raise ForbiddenError("This needs an administrator's API key.")
    return found


AdminDep = Annotated[Principal, Depends(admin)]
