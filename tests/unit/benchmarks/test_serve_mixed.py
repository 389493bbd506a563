"""The mixed load of `make bench-serve`, scaled down, without a model: nothing fails, nothing stays behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.serve_mixed import Load, growth_percent
from benchmarks.serve_server import served
from km_registry.base_model import BaseModel
from server.engine.scripted import ScriptedEngine
from tests.contract.engine_contract import until
from tests.support import BASE_FINGERPRINT, write_km
from tests.unit.server.conftest import WordTokenizer


async def test_a_mixed_load_with_publishes_and_deletes(tmp_path: Path) -> None:
    tokenizer = WordTokenizer()
    engine = ScriptedEngine(tokenizer, slots=2, places=4)
    model = BaseModel(tmp_path, "test", BASE_FINGERPRINT)
    async with served(engine, tokenizer, model, tmp_path / "data", write_km) as server:
        load = Load(server, every_s=0.01)
        await load.run(lambda: load.deleted > 5 and load.published > 5 and load.statuses[200] > 50)
        # The server learns a moment later of the last client that went away.
        async with asyncio.timeout(10):
            await server.state.in_flight.drain_all()
        assert len(server.state.in_flight) == 0
        # What has left the gateway leaves its slot in the same loop, a turn later.
        counts = (await until(engine, lambda status: status.adapters.pinned == 0)).adapters
    assert load.wrong == []
    assert set(load.statuses) <= {200, 404, 409}
    assert counts.swaps > 5
    assert (counts.pinned, counts.waiting) == (0, 0)


def test_memory_at_the_end_is_compared_with_that_when_all_was_warm() -> None:
    assert growth_percent([1, 9, 100, 102, 103, 104, 105, 106, 110, 112]) == 9.9
