"""The real engine is held to what every engine does."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from server.engine.base import Adapter, GenerationRequest
from tests.contract.engine_contract import Ask, EngineContract

# Names and ids belong together for ever, also with those of the other test modules.
_ids = itertools.count(1001)


@pytest.fixture
def ask(tokenizer: PreTrainedTokenizerBase) -> Ask:
    def make(text: str, max_tokens: int, **fields: object) -> GenerationRequest:
        return GenerationRequest(tuple(tokenizer.encode(text)), max_tokens, **fields)

    return make


@pytest.fixture
def adapter(make_adapter: Callable[..., Adapter]) -> Adapter:
    return make_adapter(next(_ids), seed=3)


@pytest.fixture
def adapters(make_adapter: Callable[..., Adapter]) -> list[Adapter]:
    return [make_adapter(next(_ids), seed=seed) for seed in range(4, 9)]


class TestVllmEngine(EngineContract):
    """With the embedded model."""
