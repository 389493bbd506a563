"""Identifiers: opaque, never reused, safe as file names and as names that other tenants may see."""

from __future__ import annotations

import hashlib
import secrets

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_LENGTH = 20


def new_id(prefix: str) -> str:
    """A new random id, `<prefix>_` and 20 base32 characters (100 bits)."""
    return f"{prefix}_" + "".join(secrets.choice(_BASE32) for _ in range(_LENGTH))


def new_secret() -> str:
    """A new API key secret, `km_` and 43 url-safe characters (256 bits)."""
    return "km_" + secrets.token_urlsafe(32)


def secret_digest(secret: str) -> str:
    """What is stored of a secret: its SHA-256 in hex. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
