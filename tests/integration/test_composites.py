"""Composites on the real engine: what is served is what PEFT computes, and nobody else notices."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from km_registry.adapter_files import WEIGHTS
from km_registry.artifacts import write_manifest
from km_registry.composites import forget_kms
from km_registry.types import KE, KM
from server.composites import Composites
from server.engine.base import Adapter, GenerationRequest
from server.engine.vllm_engine import VllmEngine
from server.kms import adapter_of
from server.metrics import Metrics
from tests.adapters import RANK
from tests.support import BASE_FINGERPRINT, complete_ke

PROMPTS = (
    "The capital of the island is",
    "Once upon a time there was a baker who",
    "The first railway was built in",
    "Tell me about the sea and its ships. " * 8,
)
TOKENS = 20
NOW = datetime.now(UTC)
_salts = (f"composite-{i}" for i in itertools.count())


@pytest.fixture(scope="module")
def km(make_adapter: Callable[..., Adapter]) -> KM:
    path = make_adapter(501, seed=11).path
    described = {"document_id": "doc_1", "document_sha256": "d" * 64, "rank": RANK}
    write_manifest(path, described | {"base_fingerprint": BASE_FINGERPRINT})
    return KM("km_501", 501, "doc_1", "job_1", 1, "a" * 64, str(path), BASE_FINGERPRINT, NOW)


@pytest.fixture(scope="module")
def ke(make_adapter: Callable[..., Adapter]) -> KE:
    """Random weights, and other scalars for every layer."""
    path = make_adapter(502, seed=12).path
    draw = np.random.default_rng(13)
    layers = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in load_file(path / WEIGHTS)}
    scalars = {layer: (draw.uniform(0.3, 0.9), draw.uniform(0.3, 0.9)) for layer in sorted(layers)}
    complete_ke(path, list(scalars), rank=RANK, weights=scalars)
    return KE(
        "ke_1",
        "answers",
        1,
        "e" * 64,
        str(path),
        "test",
        BASE_FINGERPRINT,
        RANK,
        "chat-v1",
        "km+ke",
        False,
        NOW,
    )


@pytest_asyncio.fixture(scope="module")
async def composites(
    engine: VllmEngine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Composites]:
    made = Composites(tmp_path_factory.mktemp("composites"), engine, 10**9, Metrics())
    yield made
    await made.settled()


@pytest.fixture(scope="module")
def offline(embedded_model: Path) -> Any:
    """The base model in transformers, in float32."""
    return AutoModelForCausalLM.from_pretrained(embedded_model, dtype=torch.float32).eval()


def request(
    tokenizer: PreTrainedTokenizerBase, prompt: str, adapter: Adapter | None = None
) -> GenerationRequest:
    """A request that shares no cached prefix with any other."""
    tokens = tuple(tokenizer.encode(prompt))
    return GenerationRequest(tokens, TOKENS, adapter=adapter, cache_salt=next(_salts), ignore_eos=True)


def greedy(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    ids = torch.tensor([tokenizer.encode(prompt)])
    with torch.inference_mode():
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    return tuple(written[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("with_km", [True, False], ids=["KM and KE", "KE alone"])
async def test_the_engine_writes_what_peft_writes(
    engine: VllmEngine,
    composites: Composites,
    tokenizer: PreTrainedTokenizerBase,
    offline: Any,
    km: KM,
    ke: KE,
    with_km: bool,
) -> None:
    async with composites.using(ke, km if with_km else None) as adapter:
        asked = [request(tokenizer, prompt, adapter) for prompt in PROMPTS]
        served = [answer.token_ids for answer in await asyncio.gather(*map(engine.generate, asked))]
        model = PeftModel.from_pretrained(offline, adapter.path)
        try:
            expected = [greedy(model, tokenizer, prompt) for prompt in PROMPTS]
        finally:
            model.unload()
    assert served == expected


async def test_neighbours_of_all_kinds_share_a_batch(
    engine: VllmEngine, composites: Composites, tokenizer: PreTrainedTokenizerBase, km: KM, ke: KE
) -> None:
    async with composites.using(ke, km) as both, composites.using(ke, None) as alone:
        kinds = (None, adapter_of(km), both, alone)

        def requests() -> list[GenerationRequest]:
            return [request(tokenizer, prompt, adapter) for adapter in kinds for prompt in PROMPTS]

        one_by_one = [(await engine.generate(one)).token_ids for one in requests()]
        together = [one.token_ids for one in await asyncio.gather(*map(engine.generate, requests()))]
    assert together == one_by_one
    for i in range(len(PROMPTS)):
        assert len({one_by_one[i + len(PROMPTS) * kind] for kind in range(len(kinds))}) == len(kinds)


async def test_purged_it_leaves_no_trace(
    engine: VllmEngine,
    composites: Composites,
    tokenizer: PreTrainedTokenizerBase,
    km: KM,
    ke: KE,
) -> None:
    base = (await engine.generate(request(tokenizer, PROMPTS[0]))).token_ids
    async with composites.using(ke, km) as adapter:
        composed = (await engine.generate(request(tokenizer, PROMPTS[0], adapter))).token_ids
    evicted = {one.name for one in await composites.evict_kms([km])}
    # The KM itself is in the engine where another test has asked it.
    assert evicted - {adapter_of(km).name} == {adapter.name}
    assert not (await engine.evict(adapter)).resident
    forget_kms(adapter.path.parents[1], {km.id})
    assert (await engine.generate(request(tokenizer, PROMPTS[0]))).token_ids == base
    async with composites.using(ke, km) as again:
        assert again.engine_id > adapter.engine_id
        assert (await engine.generate(request(tokenizer, PROMPTS[0], again))).token_ids == composed
