"""What the client raises."""

from __future__ import annotations

import httpx

from km_registry.errors import KMError


class ClientError(KMError):
    """The server refused, or could not be reached.

    `status` is HTTP's, None when there was no answer; `code` and `param` are the refusal's. `retry_after_s`
    is what the server asked to be waited. `sent` is False when the request cannot have been acted on.
    """

    def __init__(
        self,
        message: str | None = None,
        status: int | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.sent = sent

    @property
    def unreachable(self) -> bool:
        """Whether no server answered at all."""
        return self.status is None and not self.sent


class TrainingError(ClientError):
    """The training that was waited for did not end in a KM."""


def refusal(response: httpx.Response) -> ClientError:
    """The error that a response stands for, whose body has been read."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    error = body.get("error") or body.get("detail") if isinstance(body, dict) else None
    fields = error if isinstance(error, dict) else {"message": error or response.reason_phrase}
    after = response.headers.get("Retry-After", "")
    return ClientError(
        f"{fields.get('message', '')} (HTTP {response.status_code})",
        response.status_code,
        code=fields.get("code"),
        param=fields.get("param"),
        retry_after_s=float(after) if after.isdecimal() else None,
    )


def unreachable(url: object, error: httpx.TransportError) -> ClientError:
    """The error of a server that does not answer."""
    return ClientError(
        f"No answer from {url} ({error}). Start it with `km serve`, or set KM_URL.",
        sent=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout),
    )
