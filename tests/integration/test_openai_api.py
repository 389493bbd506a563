"""OpenAI's own client against the app with the real engine, tokenizer and chat template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from openai import AsyncOpenAI
from peft import PeftModel
from pydantic import BaseModel as Schema
from sse_starlette.sse import AppStatus
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from km_registry.artifacts import write_manifest
from km_registry.base_model import BaseModel
from km_registry.events import MemoryNotifier
from km_registry.jobs import MemoryJobQueue
from km_registry.prompts import PROMPT_FORMAT, answer_messages, encode
from km_registry.registry import Registry
from km_registry.types import KM, Principal
from server.app import AppState, create_app
from server.client import AsyncKM
from server.config import ServerSettings
from server.engine.vllm_engine import VllmEngine
from server.http_server import HttpServer
from server.kms import adapter_of
from server.startup import listen, url_of
from tests.adapters import RANK, write_llama_adapter
from tests.support import BASE_FINGERPRINT

QUESTION = "Who founded the naïve café on the island?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(data_dir=tmp_path / "data", database_url=None, redis_url=None, embedder="none")


@pytest.fixture
async def state(
    registry: Registry,
    settings: ServerSettings,
    engine: VllmEngine,
    tokenizer: PreTrainedTokenizerBase,
    notifier: MemoryNotifier,
    embedded_model: Path,
) -> AsyncIterator[AppState]:
    made = AppState(
        registry=registry,
        queue=MemoryJobQueue(),
        engine=engine,
        tokenizer=tokenizer,
        redis=notifier,
        settings=settings,
        base_model=BaseModel(embedded_model, "embedded", BASE_FINGERPRINT),
    )
    yield made
    await made.retriever.close()
    # The engine is shared, and each test's registry numbers its KMs anew.
    for one in registry.kms_after(0):
        await engine.evict(adapter_of(one))


@pytest.fixture
async def client(
    state: AppState, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AsyncOpenAI]:
    # What stops a server tells every event stream of its process, later ones too.
    monkeypatch.setattr(AppStatus, "should_exit", False)
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(state), listener)
    await server.start()
    _, key = registry.create_user("Ada")
    async with AsyncOpenAI(base_url=f"{url_of(listener)}/v1", api_key=key, max_retries=0) as made:
        yield made
    await server.stop()


@pytest.fixture
def km(client: AsyncOpenAI, registry: Registry, embedded_model: Path) -> KM:
    """A KM of random weights, published as a worker does."""
    principal = registry.authenticate(client.api_key)
    assert isinstance(principal, Principal)
    document, job, _ = registry.add_document(principal, "Island", "The island has a café.", {})
    claimed = registry.claim(job.id)
    assert claimed is not None
    directory = registry.work_dir(job.id) / f"staged-{claimed.attempt}"
    directory.mkdir(parents=True)
    write_llama_adapter(directory, AutoConfig.from_pretrained(embedded_model), seed=11)
    (directory / "README.md").write_text("A KM made by a test.\n")
    fields = {
        "base_model": "embedded",
        "base_fingerprint": BASE_FINGERPRINT,
        "document_id": document.id,
        "document_sha256": document.sha256,
        "title": document.title,
        "prompt_format": PROMPT_FORMAT,
        "rank": RANK,
    }
    write_manifest(directory, fields)
    return registry.publish(job.id, claimed.attempt, directory, {})


async def test_streams_and_whole_answers_are_the_same_tokens(
    client: AsyncOpenAI, km: KM, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = {}
    for model in ("base", km.document_id, km.id):
        asked = {"model": model, "messages": MESSAGES, "max_tokens": 24, "logprobs": True, "top_logprobs": 2}
        for sampling in ({"temperature": 0}, {"temperature": 0.8, "seed": 5}):
            whole = await client.chat.completions.create(**asked, **sampling)
            chunks = [
                chunk.choices[0]
                async for chunk in await client.chat.completions.create(**asked, **sampling, stream=True)
            ]
            text = whole.choices[0].message.content
            assert "".join(chunk.delta.content or "" for chunk in chunks) == text
            told = [one.token for one in whole.choices[0].logprobs.content]
            assert [one.token for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content] == told
            assert chunks[-1].finish_reason == whole.choices[0].finish_reason
            texts[model, sampling["temperature"]] = text
    assert texts[km.id, 0] == texts[km.document_id, 0] != texts["base", 0]
    prompt = encode(tokenizer, answer_messages(QUESTION))
    plain = await client.completions.create(
        model=km.id, prompt=prompt, max_tokens=24, temperature=0, logprobs=1
    )
    # One plain question to a KM is what it was trained for.
    assert plain.choices[0].text == texts[km.id, 0]
    assert plain.usage.prompt_tokens == whole.usage.prompt_tokens == len(prompt)


async def test_answers_are_held_to_a_schema(client: AsyncOpenAI, km: KM) -> None:
    class Founding(Schema):
        known: bool
        kind: Literal["person", "company"]
        # No number without bounds: weights of chance may write digits for ever.
        houses: Literal[1, 2, 3]

    for model in ("base", km.id):
        parsed = await client.chat.completions.parse(
            model=model, messages=MESSAGES, max_tokens=80, temperature=0, response_format=Founding
        )
        assert isinstance(parsed.choices[0].message.parsed, Founding)


async def test_a_client_that_leaves_ends_the_generation(
    client: AsyncOpenAI, km: KM, engine: VllmEngine, state: AppState
) -> None:
    stream = await client.chat.completions.create(
        model=km.id, messages=MESSAGES, max_tokens=900, stream=True, extra_body={"stop": None}
    )
    await anext(stream)
    assert (await engine.status()).adapters.pinned == 1
    await stream.close()
    # Waits for requests in flight; 900 tokens would take far longer.
    assert (await asyncio.wait_for(engine.evict(adapter_of(km)), 30)).resident
    status = await engine.status()
    assert (status.waiting, status.answering) == (0, 0)
    assert (len(state.in_flight), state.guarded.in_flight) == (0, 0)


async def test_what_is_exported_is_loaded_by_peft_and_imported_again(
    client: AsyncOpenAI,
    km: KM,
    tokenizer: PreTrainedTokenizerBase,
    embedded_model: Path,
    tmp_path: Path,
) -> None:
    prompt = encode(tokenizer, answer_messages(QUESTION))
    asked = {"prompt": prompt, "max_tokens": 16, "temperature": 0}
    served = (await client.completions.create(model=km.id, **asked)).choices[0].text
    async with AsyncKM(str(client.base_url).removesuffix("/v1/"), client.api_key) as mine:
        directory = await mine.export(km.document_id, tmp_path / "km", text=True)
        assert _by_peft(embedded_model, directory, tokenizer, prompt) == served
        await mine.delete(km.document_id)
        # Held to the base model's own shapes on the way.
        imported = await mine.import_km(directory)
        assert imported["document"]["id"] != km.document_id
    again = await client.completions.create(model=imported["document"]["id"], **asked)
    assert again.choices[0].text == served


def _by_peft(
    embedded_model: Path, directory: Path, tokenizer: PreTrainedTokenizerBase, prompt: list[int]
) -> str:
    base = AutoModelForCausalLM.from_pretrained(embedded_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, directory).eval()
    ids = torch.tensor([prompt])
    with torch.no_grad():
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
        )
    return tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True)
