"""What the client tries again by itself, and after how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import stamina

from server.client.errors import ClientError

#: A wait that the server asks for is obeyed up to this many seconds; beyond, its refusal is the answer.
LONGEST_WAIT_S = 30.0
_WAIT_INITIAL_S = 0.1
_WAIT_MAX_S = 5.0
#: What they were asked for is going on already.
_UNDER_WAY = ("deletion_pending", "removal_pending")


def attempts(retries: int, *, repeatable: bool) -> Any:
    """The attempts at one request: `for attempt in …: with attempt: …`, with `async for` as well.

    Tried again are requests that no server has seen, those that it turned away with a time to come back
    (429, 503), and, of those that `repeatable` says do no more when done twice, those whose answer was lost.
    """
    return stamina.retry_context(
        on=_hook(repeatable=repeatable),
        attempts=retries + 1,
        timeout=None,
        wait_initial=_WAIT_INITIAL_S,
        wait_max=_WAIT_MAX_S,
        wait_jitter=_WAIT_INITIAL_S,
    )


def _hook(*, repeatable: bool) -> Callable[[Exception], bool | float]:
    def again(error: Exception) -> bool | float:
        if not isinstance(error, ClientError):
            return False
        if error.status is None:
            return repeatable or not error.sent
        if error.status not in (429, 503) or error.retry_after_s is None or error.code in _UNDER_WAY:
            return False
        return error.retry_after_s if error.retry_after_s <= LONGEST_WAIT_S else False

    return again
