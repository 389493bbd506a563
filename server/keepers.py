"""What goes on beside the requests for as long as the server runs."""

from __future__ import annotations

import asyncio

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from km_registry.jobs import JobQueue, reconcile
from km_registry.registry import Registry
from server.composing_ahead import ComposingAhead
from server.deletion import Deletions
from server.ke_keeper import KEKeeper
from server.redis_private import PrivateRedis, RedisUnavailableError
from server.removing import Removing
from server.replacing import Replacements

_log = structlog.get_logger(__name__)

RECONCILE_EVERY_S = 30.0
CHECK_EVERY_S = 5.0


async def keep_reconciled(
    registry: Registry,
    queue: JobQueue,
    deletions: Deletions,
    kes: KEKeeper,
    *,
    every_s: float = RECONCILE_EVERY_S,
) -> None:
    """Take up again what a crash or an outage interrupted: deletions first, then jobs."""
    while True:
        try:
            await deletions.resume()
            await kes.resume()
            count = await asyncio.to_thread(reconcile, registry, queue)
        except (RedisError, SQLAlchemyError) as error:
            _log.warning("not reconciled; will try again", error=str(error))
        else:
            if count:
                _log.info("jobs enqueued again", count=count)
        await asyncio.sleep(every_s)


async def keep_removed(removing: Removing, *, every_s: float = RECONCILE_EVERY_S) -> None:
    """Complete the removals of KMs, versions and users that a crash or an outage interrupted."""
    while True:
        try:
            await removing.resume()
        except SQLAlchemyError as error:
            _log.warning("removals not looked for; will try again", error=str(error))
        await asyncio.sleep(every_s)


async def keep_replaced(replacements: Replacements, *, every_s: float = CHECK_EVERY_S) -> None:
    """Remove what newer versions and KMs took the place of: a worker publishes without telling us."""
    while True:
        try:
            await replacements.resume()
        except SQLAlchemyError as error:
            _log.warning("superseded KMs not looked for; will try again", error=str(error))
        await asyncio.sleep(every_s)


async def keep_composed(ahead: ComposingAhead, *, every_s: float = CHECK_EVERY_S) -> None:
    """Make composites of new KMs: a worker publishes without telling us."""
    while True:
        try:
            await ahead.compose()
        except SQLAlchemyError as error:
            _log.warning("new KMs not looked for; will try again", error=str(error))
        await asyncio.sleep(every_s)


async def keep_redis(redis: PrivateRedis, *, every_s: float = CHECK_EVERY_S) -> None:
    """Start the private Redis again when it died. Belongs to the main thread, as PrivateRedis.start does."""
    while True:
        if redis.pid is None:
            _log.error("the private Redis died; restarting")
            redis.stop()
            try:
                redis.start()
                await asyncio.to_thread(redis.wait_ready)
            except RedisUnavailableError as error:
                _log.error("the private Redis does not restart; will try again", reason=str(error))
        await asyncio.sleep(every_s)
