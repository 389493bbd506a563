"""The real engine, once for all integration tests, with the embedded model and adapters of random weights."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from server.engine.base import Adapter
from server.engine.engine_processes import started_since, with_descendants
from server.engine.vllm_engine import EngineConfig, VllmEngine
from tests.adapters import write_llama_adapter


def pytest_configure(config: pytest.Config) -> None:
    """torch and vLLM warn about their own insides."""
    for package in ("torch", "vllm"):
        config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:{package}")
        config.addinivalue_line("filterwarnings", f"ignore::FutureWarning:{package}")


@pytest.fixture(scope="session")
def tokenizer(embedded_model: Path) -> PreTrainedTokenizerBase:
    """The base model's tokenizer."""
    return AutoTokenizer.from_pretrained(embedded_model)


@pytest.fixture(scope="session")
def make_adapter(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Adapter]:
    """Writes adapters in PEFT's layout whose answers clearly differ from the base model's."""
    config = AutoConfig.from_pretrained(embedded_model)

    def make(engine_id: int, seed: int) -> Adapter:
        directory = tmp_path_factory.mktemp("adapter")
        write_llama_adapter(directory, config, seed=seed)
        return Adapter(f"km-{engine_id}", engine_id, directory)

    return make


@pytest_asyncio.fixture(scope="session")
async def engine(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    """The real engine. With few tokens a step and few requests at once, prefill, decode and queueing mix."""
    config = EngineConfig(
        model=embedded_model,
        max_loras=4,
        # Wider than the adapters, as where composites are served beside KMs; rounded up to 32.
        max_lora_rank=28,
        max_model_len=1024,
        kv_cache_bytes=256 * 2**20,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        dtype="float32",
        cache_dir=tmp_path_factory.mktemp("compiled"),
    )
    engine = VllmEngine(config)
    with pytest.raises(Exception, match="not running"):
        await engine.check()
    environment = dict(os.environ)
    await engine.start()
    assert dict(os.environ) == environment
    family = with_descendants(started_since(set()))
    assert family
    yield engine
    await engine.close()
    await engine.close()
    assert not [process for process in family if process.is_running() and process.status() != "zombie"]
