"""What goes on beside the requests for as long as the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from km_registry.errors import StoreUnavailableError
from km_registry.jobs import JobQueue, reconcile
from km_registry.registry import Registry
from server.deletion import Deletions
from server.ke_keeper import KEKeeper
from server.prefetching import Prefetching
from server.redis_private import PrivateRedis, RedisUnavailableError
from server.removing import Removing
from server.replacing import Replacements

if TYPE_CHECKING:
    from server.state import AppState

_log = structlog.get_logger(__name__)

CHECK_EVERY_S = 5.0
PRUNE_EVERY_S = 24 * 3600.0


def keepers_of(state: AppState) -> list[Coroutine[Any, Any, None]]:
    """What keeps the parts of a server in order, to be run until it stops."""
    every_s = state.settings.reconcile_seconds
    found = [
        keep_reconciled(state.registry, state.queue, state.deletions, state.ke_keeper, every_s=every_s),
        keep_replaced(state.replacements, every_s=min(every_s, CHECK_EVERY_S)),
        keep_removed(state.removing, every_s=every_s),
        keep_prefetched(state.prefetching),
        state.engine_keeper.run(),
    ]
    if state.registry.has_shared_store:
        found.append(keep_swept(state.registry))
    if state.settings.audit_days:
        found.append(keep_audit(state.registry, state.settings.audit_days))
    return found


async def keep_reconciled(
    registry: Registry,
    queue: JobQueue,
    deletions: Deletions,
    kes: KEKeeper,
    *,
    every_s: float,
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


async def keep_audit(registry: Registry, days: int, *, every_s: float = PRUNE_EVERY_S) -> None:
    """Forget what the audit log says of more than `days` days ago, at once and daily."""
    while True:
        try:
            forgotten = await asyncio.to_thread(
                registry.people.prune_audit, datetime.now(UTC) - timedelta(days=days)
            )
        except SQLAlchemyError as error:
            _log.warning("audit log not pruned; will try again", error=type(error).__name__)
        else:
            if forgotten:
                _log.info("audit log pruned", entries=forgotten, days=days)
        await asyncio.sleep(every_s)


async def keep_swept(registry: Registry, *, every_s: float = CHECK_EVERY_S) -> None:
    """Remove the copies of what another machine deleted, and what came into the shared store too late."""
    while True:
        try:
            removed = await asyncio.to_thread(registry.sweep)
            late = await asyncio.to_thread(registry.sweep_store)
        except (SQLAlchemyError, OSError, StoreUnavailableError) as error:
            _log.warning("not swept; will try again", error=type(error).__name__)
        else:
            if removed:
                _log.info("copies of deleted documents removed", count=removed)
            if late:
                _log.info("removed from the store what came too late", count=late)
        await asyncio.sleep(every_s)


async def keep_removed(removing: Removing, *, every_s: float) -> None:
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


async def keep_prefetched(prefetching: Prefetching, *, every_s: float = CHECK_EVERY_S) -> None:
    """Have new KMs loaded, and joined with the default KE: a worker publishes without telling us."""
    while True:
        try:
            await prefetching.published()
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
