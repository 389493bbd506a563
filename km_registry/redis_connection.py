"""Clients of the Redis that the settings name: one server, or the master that Sentinels agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from km_registry.redis_address import is_sentinel, sentinel_address

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis


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
