"""The mixed load of `make bench-serve`, scaled down, without a model: nothing fails, nothing grows."""

from __future__ import annotations

from pathlib import Path

import psutil

from benchmarks.serve_mixed import measure
from benchmarks.serve_server import served
from km_registry.base_model import BaseModel
from server.engine.scripted import ScriptedEngine
from tests.support import BASE_FINGERPRINT, write_km
from tests.unit.server.conftest import WordTokenizer

SECONDS = 10.0
MOST_GROWTH_PERCENT = 5.0


async def test_a_mixed_load_with_publishes_and_deletes(tmp_path: Path) -> None:
    tokenizer = WordTokenizer()
    engine = ScriptedEngine(tokenizer, slots=2, places=4)
    model = BaseModel(tmp_path, "test", BASE_FINGERPRINT)
    process = psutil.Process()
    async with served(engine, tokenizer, model, tmp_path / "data", write_km) as server:
        found = await measure(server, seconds=SECONDS, every_s=0.2, rss=lambda: process.memory_info().rss)
        assert len(server.state.in_flight) == 0
        counts = (await engine.status()).adapters
    assert found["mixed_wrong"] == []
    assert set(found["mixed_statuses"]) <= {"200", "404", "409"}
    assert found["mixed_statuses"]["200"] > 50
    assert min(found["mixed_published"], found["mixed_deleted"], found["mixed_swaps"]) > 5
    assert (counts.pinned, counts.waiting) == (0, 0)
    assert found["mixed_growth_percent"] < MOST_GROWTH_PERCENT
