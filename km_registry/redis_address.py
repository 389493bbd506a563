"""Where a URL of Sentinels says that they are, and how their master is spoken to.

    redis+sentinel://[user:password@]host1:26379,host2:26379/name of the master[/database]

`rediss+sentinel` is the same over TLS. User and password are the master's; Sentinels that want their own get
them by `?sentinel_password=…` (and `sentinel_username`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_SCHEMES = ("redis+sentinel", "rediss+sentinel")
_PORT = 26379
#: A Sentinel that does not answer within so many seconds is passed over.
_PATIENCE_S = 2.0
_LIKE = "redis+sentinel://host1:26379,host2:26379/mymaster/0"


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """Where the Sentinels are, which master they are asked for, and how it is spoken to."""

    hosts: list[tuple[str, int]]
    master: str
    sentinel: dict[str, Any] = field(repr=False)
    connection: dict[str, Any] = field(repr=False)


def is_sentinel(url: str) -> bool:
    """Whether the URL names Sentinels."""
    return url.partition("://")[0] in _SCHEMES


def sentinel_address(url: str) -> SentinelAddress:
    """What a URL of Sentinels says. ValueError, which quotes nothing of it, when it cannot be read."""
    parts = urlsplit(url)
    login, _, places = parts.netloc.rpartition("@")
    hosts = [_host(place) for place in places.split(",") if place]
    master, _, database = unquote(parts.path.strip("/")).partition("/")
    if not hosts or not master or not (database or "0").isdecimal():
        raise ValueError(f"give Sentinels, their master and a database, like {_LIKE}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - {"sentinel_username", "sentinel_password"}):
        raise ValueError(f"the option {unknown[0]} is not known; leave it out")
    tls = {"ssl": True} if parts.scheme == _SCHEMES[1] else {}
    patience = {"socket_timeout": _PATIENCE_S, "socket_connect_timeout": _PATIENCE_S}
    user, _, password = login.partition(":")
    named = {"username": unquote(user), "password": unquote(password)}
    return SentinelAddress(
        hosts,
        master,
        {name.removeprefix("sentinel_"): value for name, value in options.items()} | patience | tls,
        {name: value for name, value in named.items() if value} | {"db": int(database or 0)} | tls,
    )


def _host(place: str) -> tuple[str, int]:
    # Of an IPv6 address the colons are its own: [::1]:26379.
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        return place.strip("[]"), _PORT
    if not port.isdecimal() or not host:
        raise ValueError(f"a Sentinel has a host and a port; give them like {_LIKE}")
    return host.strip("[]"), int(port)
