"""Engine replicas on a real Ray Serve: what every engine does, and what only several of them show."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from km_registry import base_model
from km_registry.errors import KMError
from server.engine.base import Adapter, AdapterLoadError, EngineUnavailableError, GenerationRequest
from server.engine.ray_engine import RayEngine
from server.engine.ray_live import live_replicas
from server.ray_application import build
from tests.contract.engine_contract import QUESTION, Ask, EngineContract, until
from tests.integration.on_ray.conftest import MAKE
from tests.unit.deploy.shapes import serve_config

_ids = itertools.count(1)


async def kill_the_busy(engine: RayEngine) -> None:
    """kill -9 of the replica that has requests."""
    found, status = await engine.replicas(), await engine._on_every("status")
    (busy,) = [name for name, one in status.items() if one.waiting + one.answering]
    psutil.Process(found[busy].pid).kill()


@pytest.fixture(scope="module")
async def alone(pair: RayEngine) -> AsyncIterator[RayEngine]:
    """One replica, on the same Ray."""
    alone = RayEngine(replace(pair._config, app="km-alone", replicas=1, max_replicas=1), MAKE)
    await alone.start()
    yield alone
    await alone.close()


def replicas(engine: RayEngine) -> set[str]:
    return set(live_replicas(engine._config.app))


@pytest.fixture
def ask() -> Ask:
    def made(text: str, max_tokens: int, **fields: object) -> GenerationRequest:
        return GenerationRequest(tuple(map(ord, text)), max_tokens, **fields)

    return made


def _adapter(folder: Path) -> Adapter:
    number = next(_ids)
    path = folder / f"km_{number}"
    path.mkdir()
    return Adapter(f"km_{number}", number, path)


@pytest.fixture
def adapter(folder: Path) -> Adapter:
    return _adapter(folder)


@pytest.fixture
def adapters(folder: Path) -> list[Adapter]:
    return [_adapter(folder) for _ in range(5)]


class TestOneReplica(EngineContract):
    """What every engine does."""

    @pytest.fixture
    def engine(self, alone: RayEngine) -> RayEngine:
        return alone


async def test_a_gateway_of_another_base_model_is_refused(pair: RayEngine) -> None:
    other = RayEngine(replace(pair._config, fingerprint="another"), MAKE)
    with pytest.raises(EngineUnavailableError, match="base model fingerprint, and this gateway another"):
        await other.start()
    await pair.check()


async def test_an_adapter_has_one_home_and_is_evicted_from_every_replica(
    pair: RayEngine, ask: Ask, adapter: Adapter
) -> None:
    before = (await pair.status()).adapters
    for _ in range(6):
        await pair.generate(ask(QUESTION, 2, adapter=adapter))
    after = (await pair.status()).adapters
    assert (after.loads - before.loads, after.found_in_slot - before.found_in_slot) == (1, 5)
    eviction = await pair.evict(adapter)
    assert eviction.from_slot
    assert set(eviction.replicas) == replicas(pair)
    assert len(eviction.replicas) == 2


async def test_gateways_number_their_adapters_each_for_itself(
    pair: RayEngine, ask: Ask, adapters: list[Adapter]
) -> None:
    """And may see the same one's files in different places."""
    one, other = adapters[0], replace(adapters[1], engine_id=adapters[0].engine_id)
    for adapter in (one, other, replace(one, engine_id=99, path=adapters[2].path)):
        found = await pair.generate(ask(QUESTION, 40, adapter=adapter))
        assert found.text.startswith(f"{adapter.name} says")
    assert (await pair.evict(one)).from_memory
    assert (await pair.generate(ask(QUESTION, 40, adapter=other))).text.startswith(other.name)
    assert (await pair.evict(other)).from_memory


async def test_a_replica_that_a_deletion_did_not_reach_sees_that_the_files_are_gone(
    pair: RayEngine, ask: Ask, adapter: Adapter
) -> None:
    await pair.generate(ask(QUESTION, 2, adapter=adapter))
    held = (await pair.status()).adapters.in_memory
    adapter.path.rmdir()
    await until(pair, lambda status: status.adapters.in_memory == held - 1)
    with pytest.raises(AdapterLoadError):
        await pair.generate(ask(QUESTION, 2, adapter=adapter))


async def test_what_a_killed_replica_had_goes_on_at_another(
    pair: RayEngine, ask: Ask, adapter: Adapter
) -> None:
    """Whole answers and streams, from where they were; and the deletion knows who is left."""
    request = ask(QUESTION, 100, adapter=adapter)
    whole = await pair.generate(request)
    pieces, waiting = [], asyncio.create_task(pair.generate(request))
    async with aclosing(pair.stream(request)) as stream:
        async for delta in stream:
            pieces.append(delta)
            if len(pieces) == 3:
                killed_at = time.monotonic()
                await kill_the_busy(pair)
            if len(pieces) == 4:
                assert time.monotonic() - killed_at < 10
    assert "".join(delta.text for delta in pieces) == whole.text
    assert (await waiting).text == whole.text
    assert set((await pair.evict(adapter)).replicas) == replicas(pair)


async def test_a_drawn_answer_that_has_begun_is_not_mixed_with_another(pair: RayEngine, ask: Ask) -> None:
    async with aclosing(pair.stream(ask(QUESTION, 100, temperature=1.0))) as stream:
        await anext(stream)
        await kill_the_busy(pair)
        with pytest.raises(EngineUnavailableError, match="ask again"):
            async for _ in stream:
                pass


async def test_gateways_join_what_was_deployed_by_its_path(
    pair: RayEngine, settings: dict[str, str], ask: Ask
) -> None:
    """As a RayService of KubeRay deploys it, with the very configuration that the chart gives it."""
    model = base_model.resolve("embedded", Path(settings["KM_DATA_DIR"]))
    config = replace(
        pair._config, fingerprint=model.fingerprint, address="auto", app="km-declared", deploys=False
    )
    gateway = RayEngine(config, MAKE)
    joining = asyncio.create_task(gateway.start())
    declared = yaml.safe_load(serve_config())
    declared["applications"][0]["name"] = config.app
    client = _get_global_client()
    await asyncio.to_thread(client.deploy_apps, ServeDeploySchema.model_validate(declared))
    await joining
    assert len(await gateway.replicas()) == 1
    assert (await gateway.generate(ask(QUESTION, 4))).token_ids
    await gateway.close()
    await pair.check()


def test_what_is_set_by_the_environment_is_not_set_by_arguments() -> None:
    with pytest.raises(KMError, match="leave out the arguments replicas"):
        build({"replicas": "2"})
