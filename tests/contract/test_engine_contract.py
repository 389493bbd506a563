"""The scripted engine is held to what every engine does; see tests/integration for the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.base import Adapter, GenerationRequest
from server.engine.scripted import ScriptedEngine
from tests.contract.engine_contract import Ask, EngineContract
from tests.unit.server.conftest import WordTokenizer


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture
def engine(tokenizer: WordTokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer, max_model_len=200)


@pytest.fixture
def ask(tokenizer: WordTokenizer) -> Ask:
    def make(text: str, max_tokens: int, **fields: object) -> GenerationRequest:
        return GenerationRequest(tuple(tokenizer.encode(text)), max_tokens, **fields)

    return make


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    return Adapter("km_a", 1, tmp_path)


@pytest.fixture
def adapters(tmp_path: Path) -> list[Adapter]:
    made = [Adapter(f"km_{number}", number, tmp_path / str(number)) for number in range(11, 17)]
    for one in made:
        one.path.mkdir()
    return made


class TestScriptedEngine(EngineContract):
    """Without a model."""
