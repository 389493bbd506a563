"""A route of the page: what it refuses becomes a page for a reader, and stays JSON for the page's script."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from server.errors import UnauthenticatedError
from server.problems import PROBLEMS, error_body, mapped
from server.web.context import Web

#: Nothing but what the page itself serves: no inline script or style, no frame, no other host.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
SIGN_IN = "/ui/sign-in"


class PageRoute(APIRoute):
    """Puts the security headers on, sends who is not signed in to sign in, and says refusals in HTML."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI calls."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                response = await handle(request)
            except tuple(PROBLEMS) as error:
                response = await _refused(request, error)
            for name, value in HEADERS.items():
                response.headers[name] = value
            # What is shown is for who is signed in now; assets say otherwise themselves.
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return handled


def is_script(request: Request) -> bool:
    """Whether the page's script asks, and not a person who navigates."""
    return "hx-request" in request.headers or "x-csrf-token" in request.headers


async def _refused(request: Request, error: Exception) -> Response:
    signed_out = isinstance(error, UnauthenticatedError)
    if is_script(request):
        if not signed_out:
            # As everywhere, for the script to read.
            raise error
        response: Response = await mapped(request, error)
        response.headers["HX-Redirect"] = SIGN_IN
        return response
    if signed_out:
        back = "" if request.method != "GET" or request.url.path == "/" else f"?to={quote(request.url.path)}"
        return RedirectResponse(SIGN_IN + back, status_code=303)
    web: Web = request.app.state.web
    status, said = (await mapped(request, error)).status_code, error_body(error)["error"]
    return web.page("refusal.html", status=status, message=said["message"], code=said["code"])
