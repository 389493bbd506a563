"""The real engine's adapters: what is damaged reaches no slot, and what is forgotten is overwritten."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from server.engine.base import Adapter, AdapterLoadError, Eviction, GenerationRequest
from server.engine.vllm_engine import VllmEngine

# Names and ids belong together for ever, also with those of the other test modules.
_ids = itertools.count(3001)
_salts = (f"adapters-{i}" for i in itertools.count())
QUESTION = "Tell me about the sea and its ships."


@pytest.fixture
def ask(tokenizer: PreTrainedTokenizerBase) -> Callable[..., GenerationRequest]:
    """A request that shares no cached prefix with any other, unless it is given its salt."""

    def make(text: str, max_tokens: int = 16, **options: object) -> GenerationRequest:
        options.setdefault("cache_salt", next(_salts))
        return GenerationRequest(tuple(tokenizer.encode(text)), max_tokens, ignore_eos=True, **options)

    return make


@pytest.fixture
def adapters(make_adapter: Callable[..., Adapter]) -> tuple[Adapter, Adapter]:
    return make_adapter(next(_ids), seed=1), make_adapter(next(_ids), seed=2)


def _with_tensors(
    directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    file = directory / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def _missing(directory: Path) -> None:
    shutil.rmtree(directory)


def _truncated(directory: Path) -> None:
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _not_finite(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[max(tensors)][3, 5] = float("nan")
        return tensors

    _with_tensors(directory, change)


def _of_too_high_a_rank(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: tensor.repeat((4, 1) if "lora_A" in name else (1, 4)).contiguous()
            for name, tensor in tensors.items()
        }

    _with_tensors(directory, change)
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | {"r": 64}))


def _of_another_model(directory: Path) -> None:
    _with_tensors(
        directory,
        lambda tensors: {
            name: torch.cat([tensor, tensor], dim=1) if "lora_A" in name else torch.cat([tensor, tensor])
            for name, tensor in tensors.items()
        },
    )


def _of_more_layers(directory: Path) -> None:
    _with_tensors(
        directory,
        lambda tensors: {name.replace("layers.29", "layers.30"): one for name, one in tensors.items()},
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_missing, ""),
        (_truncated, ""),
        (_not_finite, "not finite"),
        (_of_too_high_a_rank, "rank"),
        (_of_another_model, "in this model"),
        (_of_more_layers, "layers that this model has not"),
    ],
)
async def test_a_broken_adapter_harms_nobody_else(
    engine: VllmEngine,
    ask: Callable[..., GenerationRequest],
    adapters: tuple[Adapter, Adapter],
    damage: Callable[[Path], None],
    says: str,
) -> None:
    broken, whole = adapters
    alone = (await engine.generate(ask("Meanwhile", 12, adapter=whole))).token_ids
    damage(broken.path)
    neighbour = asyncio.create_task(engine.generate(ask("Meanwhile", 12, adapter=whole)))
    with pytest.raises(AdapterLoadError, match=f"{broken.name}.*{says}"):
        await engine.generate(ask("Hello", adapter=broken))
    assert (await neighbour).token_ids == alone
    await engine.check()
    (held,) = await engine._on_workers("km_adapters")
    assert broken.engine_id not in held["in_memory"] + held["in_slots"]
    assert engine._admission.difference(held["in_slots"], held["in_memory"]) is None
    assert not (await engine.evict(broken)).resident
    assert (await engine.evict(whole)).resident


async def test_what_is_forgotten_is_overwritten_and_nobody_else_changes(
    engine: VllmEngine, ask: Callable[..., GenerationRequest], make_adapter: Callable[..., Adapter]
) -> None:
    """Also in a slot that another adapter's turn had taken from it long ago."""
    adapters = [make_adapter(next(_ids), seed=seed) for seed in range(5)]
    # The same salt before and after: what was cached may be used again, and must be right.
    salts = [next(_salts) for _ in range(6)]

    async def answers() -> list[tuple[int, ...]]:
        of = [None, *adapters[1:]]
        asked = (ask(QUESTION, 6, adapter=one, cache_salt=salt) for one, salt in zip(of, salts, strict=False))
        return [(await engine.generate(request)).token_ids for request in asked]

    gone = (await engine.generate(ask(QUESTION, 6, adapter=adapters[0], cache_salt=salts[5]))).token_ids
    before = await answers()
    assert gone not in before
    eviction = await engine.evict(adapters[0])
    assert eviction == Eviction(adapters[0].name, from_slot=False, from_memory=True, prefixes_forgotten=True)
    assert await answers() == before
    for adapter in adapters[1:]:
        await engine.evict(adapter)
    assert await engine._on_workers("km_traces") == [0]
    (held,) = await engine._on_workers("km_adapters")
    assert held["unasked"] == 0
