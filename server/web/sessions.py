"""Sign-in sessions: a signed cookie that names an API key, and the token that every form has to send.

A session is nothing but a name for its key, so it ends with the key: whether that still works is asked at
every request. What signs is the server's own, so that a session outlives a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

_KEY_BYTES = 32
#: A session that is not signed out of ends by itself.
LIFETIME_S = 7 * 24 * 3600
#: Another server, which signs with the same secret, may have a clock that is ahead of ours.
_AHEAD_S = 300


class Sessions:
    """Signs and reads session cookies with one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def begin(self, key_id: str, *, now: float | None = None) -> str:
        """The cookie's value for a session by that key."""
        body = f"{key_id}.{int(time.time() if now is None else now)}.{secrets.token_urlsafe(12)}"
        return f"{body}.{self._signed('session', body)}"

    def key_id(self, value: str, *, now: float | None = None) -> str | None:
        """The id of the key that the session is by; None when it is not ours, or too old."""
        body, _, signature = value.rpartition(".")
        if not hmac.compare_digest(self._signed("session", body).encode(), signature.encode()):
            return None
        key_id, began, _ = body.split(".")
        age = (time.time() if now is None else now) - int(began)
        return key_id if -_AHEAD_S <= age < LIFETIME_S else None

    def token(self, value: str) -> str:
        """What a form must send to be taken as the page's own: nobody else can make it of the cookie."""
        return self._signed("form", value)

    def is_token(self, value: str, token: str) -> bool:
        """Whether the token belongs to the cookie."""
        return hmac.compare_digest(self.token(value).encode(), token.encode("utf-8", "surrogatepass"))

    def _signed(self, purpose: str, body: str) -> str:
        data = f"{purpose}:{body}".encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, data, hashlib.sha256).hexdigest()


def session_secret(data_dir: Path, given: str | None) -> bytes:
    """What sessions are signed with: what the operator gave, else a secret kept in the data directory."""
    if given:
        return given.encode()
    path = data_dir / "session.key"
    if not path.exists():
        _write_once(path, secrets.token_bytes(_KEY_BYTES))
    return path.read_bytes()


def _write_once(path: Path, secret: bytes) -> None:
    """Whole or not at all; one that another process wrote meanwhile stays."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
        if not path.exists():
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
