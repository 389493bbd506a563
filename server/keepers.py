"""What goes on beside the requests for as long as the server runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from km_registry.errors import InstallationError, StoreUnavailableError
from km_registry.jobs import JobQueue, reconcile
from km_registry.registry import Registry
from server.clocks import Clocks
from server.deletion import Deletions
from server.engine_keeper import EngineKeeper
from server.fencing import BEAT_S
from server.fleet import Fleet
from server.ke_keeper import KEKeeper
from server.letting_go import LettingGo
from server.prefetching import Prefetching
from server.redis_private import PrivateRedis, RedisUnavailableError
from server.removing import Removing
from server.replacing import Replacements

if TYPE_CHECKING:
    from server.state import AppState

_log = structlog.get_logger(__name__)

CHECK_EVERY_S = 5.0
#: Between two looks for what other gateways deleted: a deletion waits for as long, at most.
LOOK_EVERY_S = 0.5
PRUNE_EVERY_S = 24 * 3600.0
STORE_CHECK_EVERY_S = 30.0
CLOCKS_EVERY_S = 60.0


def keepers_of(state: AppState) -> list[Coroutine[Any, Any, None]]:
    """What keeps the parts of a server in order, to be run until it stops."""
    every_s = state.settings.reconcile_seconds
    found = [
        keep_reconciled(state.registry, state.queue, state.deletions, state.ke_keeper, every_s=every_s),
        keep_replaced(state.replacements, every_s=min(every_s, CHECK_EVERY_S)),
        keep_removed(state.removing, every_s=every_s),
        keep_prefetched(state.prefetching),
        state.engine_keeper.run(),
        keep_clocks_compared(state.clocks),
    ]
    if state.fleet.has_joined:
        found += [
            keep_in_fleet(state.fleet, state.letting_go, state.engine_keeper),
            keep_fleet_pruned(state.registry),
        ]
    if state.registry.has_shared_store:
        found += [keep_swept(state.registry), keep_store_checked(state.registry)]
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


async def keep_in_fleet(
    fleet: Fleet, letting_go: LettingGo, engine: EngineKeeper, *, every_s: float = LOOK_EVERY_S
) -> None:
    """Be counted among the gateways of this database, and let go of what any of them deletes.

    One whose engine is left alone leaves: nobody need wait for what it will never answer from again.
    """
    due = 0.0
    while not engine.gave_up:
        try:
            if fleet.fence.clock() >= due:
                await fleet.beat()
                due = fleet.fence.clock() + BEAT_S - every_s
            # An engine that is on its way back comes back with nothing, and is asked then.
            if fleet.fence.must_reconcile and engine.reason is None:
                letting_go.begin_reconciling()
            if fleet.others and engine.reason is None:
                # Not waited for: a heartbeat waits for nobody's work.
                letting_go.begin_pending()
        except SQLAlchemyError as error:
            _log.warning("no heartbeat; will try again", error=type(error).__name__)
        await asyncio.sleep(every_s)
    await fleet.leave()


async def keep_clocks_compared(clocks: Clocks, *, every_s: float = CLOCKS_EVERY_S) -> None:
    """Compare this machine's clock with the others', at once and every minute."""
    while True:
        await asyncio.to_thread(clocks.measure)
        await asyncio.sleep(every_s)


async def keep_fleet_pruned(registry: Registry, *, every_s: float = PRUNE_EVERY_S) -> None:
    """Forget gateways and acknowledgements of long ago, at once and daily."""
    while True:
        try:
            await asyncio.to_thread(registry.gateways.prune)
        except SQLAlchemyError as error:
            _log.warning("old acknowledgements not forgotten; will try again", error=type(error).__name__)
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


async def keep_store_checked(registry: Registry, *, every_s: float = STORE_CHECK_EVERY_S) -> None:
    """Stop the server if the store turns out to be another database's; it may have been away at the start."""
    while True:
        try:
            await asyncio.to_thread(registry.installation.check_store)
        except (StoreUnavailableError, SQLAlchemyError) as error:
            _log.warning("the store not looked at; will try again", error=type(error).__name__)
        except InstallationError as error:
            _log.error("the server stops: wrong store", reason=str(error))
            signal.raise_signal(signal.SIGTERM)
            return
        else:
            return
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
