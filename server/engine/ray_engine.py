"""The engine as many replicas on Ray Serve, which any number of gateways share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

import structlog
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from server.engine.base import (
    Adapter,
    Delta,
    EngineStatus,
    EngineUnavailableError,
    Eviction,
    Generation,
    GenerationRequest,
)
from server.engine.ray_adapters import MakeReplica
from server.engine.ray_cluster import Cluster
from server.engine.ray_live import live_replicas, resident, shortest_context
from server.engine.ray_replica import Description, NotThisReplicaError
from server.engine.ray_settings import STORE, RayConfig, differences
from server.engine.residency import Counts

_log = structlog.get_logger(__name__)

T = TypeVar("T")

#: How often a request begins again, on another replica, since that which had it died.
_FAIL_OVERS = 3
#: Longest wait for a replica to say what it is, in seconds.
_ANSWER_S = 30.0
#: How often, and after how many seconds, those that may have died are asked again.
_ROUNDS = 40
_TOLD_S = 0.25
_GONE = object()


class RayEngine:
    """Implements server.engine.base.Engine. All methods belong to the event loop that called `start`.

    A request whose replica dies begins again on another one. What of it was streamed already is not streamed
    again: the pieces are the same, but for what is drawn without a seed, which fails.
    """

    def __init__(self, config: RayConfig, make: MakeReplica) -> None:
        """`make` makes what a replica is, in the replica's process; it is pickled."""
        self._config = config
        self._cluster = Cluster(config, make)
        self._handle: Any = None
        self._description: Description | None = None

    # --- life ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the application on Ray Serve, or put it there. Waits until a replica answers.

        Raises:
            EngineNotReachedError: there is no Ray where the settings say.
            EngineUnavailableError: no replica starts, or those that are there serve another base model, or
                have KMs from another store.
        """
        if self._handle is not None:
            return
        handle = await asyncio.to_thread(self._cluster.join)
        try:
            with _translated():
                described: Description = await asyncio.wait_for(handle.describe.remote(), _ANSWER_S)
            refuse_unless_ours(self._config, described)
        except (EngineUnavailableError, TimeoutError) as error:
            await asyncio.to_thread(self._cluster.leave)
            reason = str(error) or f"none said what it is within {_ANSWER_S:g} seconds"
            raise EngineUnavailableError(f"no engine replica is of use: {reason}") from error
        self._handle, self._description = handle, described
        if differing := differences(self._config.settings, described.settings):
            _log.warning(
                "the engine replicas run with other settings; km engine roll-out brings these to them",
                differing=differing,
            )

    def in_slots(self) -> frozenset[str]:
        """Names of the adapters in the slots of any replica, as they told a moment ago."""
        return frozenset(name for names in resident(self._config.app).values() for name in names)

    async def check(self) -> None:
        """Raise EngineUnavailableError unless there is a replica."""
        self._running()
        if not live_replicas(self._config.app):
            raise EngineUnavailableError("no engine replica is alive; Ray Serve starts them again")

    async def close(self) -> None:
        """Leave Ray; a Ray of our own ends. Idempotent."""
        if self._handle is not None:
            self._handle = None
            await asyncio.to_thread(self._cluster.leave)

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens; while replicas are replaced, that all of them take."""
        self._running()
        assert self._description is not None
        return shortest_context(self._config.app) or self._description.max_model_len

    async def status(self) -> EngineStatus:
        """What all replicas are doing together."""
        found = list((await self._on_every("status")).values())
        return EngineStatus(
            waiting=sum(one.waiting for one in found),
            answering=sum(one.answering for one in found),
            adapters=Counts(
                **{
                    field.name: sum(getattr(one.adapters, field.name) for one in found)
                    for field in fields(Counts)
                }
            ),
            load_ms=sum(one.load_ms for one in found),
            swap_ms=sum(one.swap_ms for one in found),
        )

    async def replicas(self) -> dict[str, Description]:
        """The live replicas, by their ids."""
        return await self._on_every("describe")

    # --- generation ----------------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> Generation:
        """Run one request to its end. Raises as Engine says."""
        handle = self._running()

        async def once() -> Generation:
            response = handle.generate.remote(request)
            try:
                found: Generation = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            return found

        return await _failing_over(once)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Run one request, piece by piece. Raises as Engine says, also after pieces were yielded."""
        handle = self._running()
        written: list[int] = []
        for attempt in range(_FAIL_OVERS + 1):
            response = handle.options(stream=True).stream.remote(request)
            try:
                with _translated():
                    async for delta in _beyond(written, response):
                        yield delta
                return  # noqa: TRY300  the last line of what is tried
            except _ReplicaDiedError as error:
                if attempt == _FAIL_OVERS or (written and not _is_repeatable(request)):
                    raise EngineUnavailableError(
                        "the replica that wrote this answer died: ask again"
                    ) from error
                _log.warning("a replica died; its request begins again on another one", pieces=len(written))
            finally:
                response.cancel()

    # --- adapters ------------------------------------------------------------------------------------------

    async def prefetch(self, adapter: Adapter) -> bool:
        """Begin to load the adapter to the memory of the replica that would be asked."""
        handle = self._running()

        async def once() -> bool:
            return bool(await handle.prefetch.remote(adapter))

        return await _failing_over(once)

    async def retire(self, adapter: Adapter) -> int:
        """Let in no more requests for the adapter, on any replica; how many were sent away."""
        return sum((await self._on_every("retire", adapter)).values())

    async def evict(self, adapter: Adapter) -> Eviction:
        """Remove the adapter from every live replica, as each acknowledges."""
        found: dict[str, Eviction] = await self._on_every("evict", adapter)
        return Eviction(
            adapter.name,
            from_slot=any(one.from_slot for one in found.values()),
            from_memory=any(one.from_memory for one in found.values()),
            prefixes_forgotten=all(one.prefixes_forgotten for one in found.values()),
            replicas=tuple(sorted(found)),
        )

    # --- calls ---------------------------------------------------------------------------------------------

    def _running(self) -> Any:
        if self._handle is None:
            raise EngineUnavailableError("the inference engine is not running: ask again when it is there")
        return self._handle

    async def _on_every(self, method: str, *args: object) -> dict[str, Any]:
        """What the method returns on every replica that is alive at the end, by their ids.

        One that dies meanwhile takes what it held with it; one that comes meanwhile is asked too.
        EngineUnavailableError when there is none, or one is alive and does not answer.
        """
        found: dict[str, Any] = {}
        for _ in range(_ROUNDS):
            live = set(live_replicas(self._config.app))
            if not live:
                break
            if live <= found.keys():
                return {name: found[name] for name in live}
            asked = (self._on_one(name, method, *args) for name in live - found.keys())
            found |= {name: one for name, one in await asyncio.gather(*asked) if one is not _GONE}
            # Serve tells us a moment later who has died.
            await asyncio.sleep(0 if live <= found.keys() else _TOLD_S)
        raise EngineUnavailableError("no engine replica is alive, or not all of them answer; try again")

    async def _on_one(self, name: str, method: str, *args: object) -> tuple[str, Any]:
        handle = self._running()
        try:
            with _translated():
                return name, await getattr(handle, method).remote(*args, to=name)
        except (_ReplicaDiedError, NotThisReplicaError):
            return name, _GONE


def refuse_unless_ours(config: RayConfig, described: Description) -> None:
    """EngineUnavailableError when the replicas serve another base model, or have KMs from another store."""
    if described.fingerprint != config.fingerprint:
        raise EngineUnavailableError(
            f"the replicas on Ray serve the base model {described.fingerprint}, and this gateway "
            f"{config.fingerprint}: give both the same KM_BASE_MODEL, or this one another cluster"
        )
    mine, theirs = (settings.get(STORE, "none") for settings in (config.settings, described.settings))
    if mine != theirs:
        raise EngineUnavailableError(
            f"the replicas on Ray have KMs from {STORE} {theirs}, and this gateway has {mine}: give both the "
            "same one, or this one another cluster"
        )


class _ReplicaDiedError(EngineUnavailableError):
    """The replica that had the request is gone."""


async def _failing_over(once: Callable[[], Awaitable[T]]) -> T:
    for attempt in range(_FAIL_OVERS + 1):
        try:
            with _translated():
                return await once()
        except _ReplicaDiedError:
            if attempt == _FAIL_OVERS:
                raise
            _log.warning("a replica died; its request begins again on another one")
    raise AssertionError


async def _beyond(written: list[int], pieces: Any) -> AsyncGenerator[Delta, None]:
    """The pieces that come after the tokens that are `written`, to which each new piece's are added.

    EngineUnavailableError when they are not the continuation of those.
    """
    skipped = 0
    before = tuple(written)
    async for delta in pieces:
        if skipped < len(before):
            count = len(delta.token_ids)
            if delta.token_ids != before[skipped : skipped + count]:
                raise EngineUnavailableError("the replica that wrote this answer died: ask again")
            skipped += count
            continue
        written.extend(delta.token_ids)
        yield delta


def _is_repeatable(request: GenerationRequest) -> bool:
    return request.temperature == 0 or request.seed is not None


@contextmanager
def _translated() -> Iterator[None]:
    """Ray's errors as ours; those that a replica's engine raised as they were."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise _ReplicaDiedError(f"an engine replica died ({type(error).__name__})") from error
    except (RayServeException, RayError) as error:
        raise EngineUnavailableError(f"Ray does not serve the engine ({error})") from error
