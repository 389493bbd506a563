"""Routing on a real Ray Serve: replicas of the scripted engine that take fixed times, so that what is
measured is where requests go and what is where, and nothing of a model."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from bisect import bisect
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from server.engine.base import Adapter, Engine, GenerationRequest
from server.engine.ray_adapters import with_shared_files
from server.engine.ray_engine import RayEngine
from server.engine.ray_live import register
from server.engine.ray_settings import RayConfig
from server.engine.scripted import Pace, ScriptedEngine
from server.planning.profile import fixed
from server.planning.simulation import simulate
from server.planning.workload import Workload

KMS, ZIPF, SLOTS, PLACES, RUNNING = 512, 1.0, 8, 64, 4
#: Long beside what Ray takes for a request, so that two cores carry eight replicas.
SERVICE_S, LOAD_S, SWAP_S = 0.8, 0.04, 0.01
#: In flight for each replica: as many as it answers at a time, and half as many that wait.
_CLIENTS = 6
_WORKLOAD = Workload(documents=KMS, zipf=ZIPF, answer_tokens=1, answer_lengths="fixed")


class _Numbers:
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:  # noqa: ARG002
        return [1]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:  # noqa: ARG002
        return "x" * len(token_ids)


def make() -> Engine:
    """A replica's engine."""
    pace = Pace(first_token_s=SERVICE_S, load_s=LOAD_S, swap_s=SWAP_S, running=RUNNING)
    return ScriptedEngine(_Numbers(), slots=SLOTS, places=PLACES, pace=pace)


class RandomRouter(RequestRouter):  # type: ignore[misc]
    """Anywhere, but for what is meant for one."""

    def initialize_state(self, *, slots: int) -> None:
        """As of the router that it is compared with."""
        del slots
        register(self.app_name, self)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One of them, whichever."""
        wanted = "" if pending_request is None else pending_request.kwargs.get("to", "")
        for one in candidate_replicas:
            if one.replica_id.unique_id == wanted:
                return [[one]]
        return [[random.choice(candidate_replicas)]]


class Multiplexed:
    """The same replica as Serve's own model multiplexing has it: the least recently used model leaves."""

    def __init__(self) -> None:
        self._engine = make()
        self.loads = self.asked = 0

    @serve.multiplexed(max_num_models_per_replica=SLOTS)  # type: ignore[untyped-decorator]
    async def load(self, name: str) -> str:
        """Called by Serve for a model that is not there."""
        self.loads += 1
        await asyncio.sleep(LOAD_S + SWAP_S)
        return name

    async def generate(self, request: GenerationRequest) -> None:
        """Answer with the model that Serve names."""
        self.asked += 1
        await self.load(serve.get_multiplexed_model_id())
        await self._engine.generate(GenerationRequest(request.prompt_token_ids, request.max_tokens))

    async def counted(self, _number: int) -> tuple[str, int, int]:
        """Which replica, loads and requests."""
        return serve.get_replica_context().replica_id.unique_id, self.loads, self.asked


def measure(*, requests: int, seed: int) -> dict[str, Any]:
    """Hit rates and throughput with our routing, Serve's multiplexing, at random; and by the simulator."""
    return asyncio.run(_measure(requests, seed))


async def _measure(requests: int, seed: int) -> dict[str, Any]:
    best = _WORKLOAD.best_hit_rate(8 * SLOTS)
    found: dict[str, Any] = {"best_hit_rate_8": round(best, 3), "replicas": {}}
    with tempfile.TemporaryDirectory(prefix="km") as folder:
        adapters = _adapters(Path(folder))
        for replicas in (1, 2, 4, 8):
            async with _ours(Path(folder), replicas) as (engine, count):
                one = await _asked(engine.generate, count, adapters, replicas, requests, seed)
                if replicas == 8:
                    found["call_ms_p50"] = await _call_ms(engine.generate, adapters[0])
            one |= _simulated(one, replicas, requests, seed)
            found["replicas"][replicas] = one
            print({"replicas": replicas, **one}, flush=True)
        for name, run in (("random", _at_random), ("multiplexed", _multiplexed)):
            async with run(Path(folder)) as (generate, count):
                found[name] = await _asked(generate, count, adapters, 8, requests, seed)
                found[name]["call_ms_p50"] = await _call_ms(generate, adapters[0])
            print({name: found[name]}, flush=True)
    ours = found["replicas"][8]
    return found | {
        "routing_added_ms_p50": round(found["call_ms_p50"] - found["random"]["call_ms_p50"], 2),
        "hit_rate_of_best": round(ours["hit_rate"] / best, 3),
        "hit_rate_over_random": round(ours["hit_rate"] / found["random"]["hit_rate"], 2),
        "throughput_8_over_1": round(ours["per_s"] / found["replicas"][1]["per_s"], 2),
    }


def _simulated(measured: dict[str, Any], replicas: int, requests: int, seed: int) -> dict[str, Any]:
    profile = fixed(
        SERVICE_S, slots=SLOTS, places=PLACES, running=RUNNING, load_ms=LOAD_S * 1000, swap_ms=SWAP_S * 1000
    )
    # Replicas tell every second what is in their slots.
    profile = profile.model_copy(update={"replica": profile.replica.model_copy(update={"told_every_s": 1.0})})
    told = simulate(
        profile, _WORKLOAD, replicas, clients=_CLIENTS * replicas, requests=replicas * requests, seed=seed
    )
    assert told.hit_rate is not None
    return {
        "simulated_per_s": round(told.throughput, 2),
        "simulated_hit_rate": round(told.hit_rate, 3),
        "simulated_over_measured_per_s": round(told.throughput / measured["per_s"], 3),
        "simulated_over_measured_hit_rate": round(told.hit_rate / measured["hit_rate"], 3),
    }


def _adapters(folder: Path) -> list[Adapter]:
    found = []
    for number in range(1, KMS + 1):
        path = folder / f"km_{number}"
        path.mkdir()
        found.append(Adapter(path.name, number, path))
    return found


_Generate = Callable[[GenerationRequest], Awaitable[Any]]
#: (requests that found their KM in a slot, all), since the beginning.
_Count = Callable[[], Awaitable[tuple[int, int]]]


async def _asked(
    generate: _Generate, count: _Count, adapters: list[Adapter], replicas: int, requests: int, seed: int
) -> dict[str, Any]:
    """A closed loop of clients, after two thirds as many requests that are not measured."""
    rng = random.Random(seed)
    popularity = _WORKLOAD.cumulative_popularity
    numbers = itertools.count()

    async def client(until: int) -> None:
        while next(numbers) < until:
            drawn = bisect(popularity, rng.random(), hi=KMS - 1)
            await generate(GenerationRequest((1,), 1, adapter=adapters[drawn]))

    async def clients(asked: int) -> float:
        nonlocal numbers
        numbers = itertools.count()
        began = time.perf_counter()
        await asyncio.gather(*(client(asked) for _ in range(_CLIENTS * replicas)))
        return time.perf_counter() - began

    await clients(replicas * requests * 2 // 3)
    before = await count()
    seconds = await clients(replicas * requests)
    after = await count()
    hits, asked = after[0] - before[0], after[1] - before[1]
    return {"per_s": round(asked / seconds, 2), "hit_rate": round(hits / asked, 3), "asked": asked}


async def _call_ms(generate: _Generate, adapter: Adapter) -> float:
    """What a call takes beyond the engine's own time, one at a time; median, in ms.

    Most of it is Serve's, also for a router that draws a replica: what ours adds is what is more than that.
    """
    took = []
    for _ in range(60):
        began = time.perf_counter()
        await generate(GenerationRequest((1,), 1, adapter=adapter))
        took.append((time.perf_counter() - began - SERVICE_S) * 1000)
    return round(sorted(took)[len(took) // 2], 2)


@asynccontextmanager
async def _ours(folder: Path, replicas: int, **changed: Any) -> AsyncIterator[tuple[RayEngine, _Count]]:
    config = RayConfig(
        "scripted", SLOTS, folder / "ray", replicas=replicas, max_replicas=replicas, cpus=0.05, **changed
    )
    engine = RayEngine(config, partial(with_shared_files, make))
    await engine.start()
    try:
        while len(await engine.replicas()) < replicas:  # noqa: ASYNC110  Serve has no event for it
            await asyncio.sleep(0.1)

        async def count() -> tuple[int, int]:
            counts = (await engine.status()).adapters
            found = counts.found_in_slot, counts.found_in_memory + counts.found_on_disk
            return found[0], sum(found)

        yield engine, count
    finally:
        await engine.close()


@asynccontextmanager
async def _at_random(folder: Path) -> AsyncIterator[tuple[_Generate, _Count]]:
    async with _ours(folder, 8, router="benchmarks.scale_routing.RandomRouter") as (engine, count):
        yield engine.generate, count


@asynccontextmanager
async def _multiplexed(folder: Path) -> AsyncIterator[tuple[_Generate, _Count]]:
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=4,
        log_to_driver=False,
        _temp_dir=str(folder / "ray"),
        object_store_memory=100 * 2**20,
    )
    serve.start(proxy_location="Disabled")
    deployment = serve.deployment(
        name="Multiplexed", num_replicas=8, max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0.05}
    )(Multiplexed)
    handle = await asyncio.to_thread(partial(serve.run, deployment.bind(), name="m", route_prefix=None))

    async def generate(request: GenerationRequest) -> None:
        assert request.adapter is not None
        await handle.options(multiplexed_model_id=request.adapter.name).generate.remote(request)

    async def count() -> tuple[int, int]:
        counted: OrderedDict[str, tuple[int, int]] = OrderedDict()
        while len(counted) < 8:
            for name, loads, asked in await asyncio.gather(
                *(handle.counted.remote(number) for number in range(16))
            ):
                counted[name] = (loads, asked)
        loads, asked = (sum(one) for one in zip(*counted.values(), strict=True))
        return asked - loads, asked

    try:
        yield generate, count
    finally:
        await asyncio.to_thread(serve.shutdown)
        ray.shutdown()
