"""Clients of the Redis that the settings name: one server, or the master that Sentinels agree on.

    redis+sentinel://[user:password@]host1:26379,host2:26379/name of the master[/database]

`rediss+sentinel` is the same over TLS. User and password are the master's; Sentinels that want their own get
them by `?sentinel_password=…` (and `sentinel_username`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

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


def open_redis(url: str, **options: Any) -> Redis:
    """A client; nothing is reached yet. After a failover its next connection is to the new master."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
    from redis.sentinel import Sentinel

    class Master(Redis):
        """A client that closes its Sentinels too."""

        def close(self) -> None:
            super().close()
            for one in sentinel.sentinels:
                one.close()

    if not is_sentinel(url):
        return Redis.from_url(url, **options)
    address = sentinel_address(url)
    # One that is away is passed over at once: another one knows the master as well.
    asked = address.sentinel | {"retry": Retry(NoBackoff(), 0)}
    sentinel = Sentinel(address.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(address.master, Master, **address.connection, **options)  # type: ignore[no-untyped-call]
    return client


def open_async_redis(url: str) -> AsyncRedis:
    """The same for an event loop."""
    from redis.asyncio import Redis as AsyncRedis
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel as AsyncSentinel
    from redis.backoff import NoBackoff

    class Master(AsyncRedis):
        """A client that closes its Sentinels too."""

        async def aclose(self, close_connection_pool: bool | None = None) -> None:
            await super().aclose(close_connection_pool)
            for one in sentinel.sentinels:
                await one.aclose()

    if not is_sentinel(url):
        return AsyncRedis.from_url(url)
    address = sentinel_address(url)
    asked = address.sentinel | {"retry": Retry(NoBackoff(), 0)}
    sentinel = AsyncSentinel(address.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    client: AsyncRedis = sentinel.master_for(address.master, Master, **address.connection)
    return client


def _host(place: str) -> tuple[str, int]:
    # Of an IPv6 address the colons are its own: [::1]:26379.
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        return place.strip("[]"), _PORT
    if not port.isdecimal() or not host:
        raise ValueError(f"a Sentinel has a host and a port; give them like {_LIKE}")
    return host.strip("[]"), int(port)
