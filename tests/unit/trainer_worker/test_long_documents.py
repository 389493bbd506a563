"""A document of 100,000 tokens: memory stays flat whatever its length, and the result is the same."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensor

from km_registry.recipe import Recipe
from trainer_worker.examples import Example
from trainer_worker.lora import open_slot
from trainer_worker.pairs import pairs_of
from trainer_worker.targets import Budget, TargetStore
from trainer_worker.teacher import compute_targets
from trainer_worker.train import Run, train

CHUNK_TOKENS = 512
BATCH_TOKENS = 512


def document(tokens: int) -> list[Example]:
    """Four examples about every chunk of a document of so many tokens."""
    draw = random.Random(8)
    examples = []
    for chunk in range(tokens // CHUNK_TOKENS):
        context = tuple(draw.randrange(4, 300) for _ in range(CHUNK_TOKENS))
        for _ in range(4):
            prompt, target = (tuple(draw.randrange(4, 300) for _ in range(length)) for length in (4, 20))
            examples.append(Example("qa", chunk, (*context, *prompt), prompt, target))
    return examples


def tensor_bytes() -> int:
    """Bytes of all tensors that this process holds, each storage once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        # What a compiler keeps of other tests' models has shapes only.
        if issubclass(type(tensor), torch.Tensor) and not issubclass(type(tensor), FakeTensor)
    }
    return sum(storages.values())


class Peak:
    """The most tensor bytes above those held at its making, looked at after every so much progress."""

    def __init__(self) -> None:
        gc.collect()
        self._before = tensor_bytes()
        self.bytes = 0

    def look(self, progress: int, every: int) -> None:
        if progress % every == 0:
            self.bytes = max(self.bytes, tensor_bytes() - self._before)


def weights_after_training(
    model: Any, examples: list[Example], store: TargetStore, look: Any
) -> torch.Tensor:
    slot = open_slot(model, rank=4, alpha=8.0, seed=1)
    pairs = pairs_of(examples, store)
    recipe = Recipe(rank=4, batch_tokens=256, learning_rate=1e-2, evaluations=1, seed=2)
    list(train(model, [Run(slot, pairs[20:], pairs[:20], recipe, 10, on_step=look)]))
    return slot.flat.detach()


@pytest.fixture
def model(make_student: Callable[..., Any]) -> Any:
    return make_student()


def test_memory_is_bounded_and_the_result_is_that_of_memory_without_bounds(
    model: Any, tmp_path: Path
) -> None:
    examples = document(100_000)
    plenty = compute_targets(model, examples, batch_tokens=BATCH_TOKENS)
    expected = weights_after_training(model, examples, plenty, lambda *_: None)
    needed = plenty.memory_bytes
    memory, disk = needed // 20, needed * 4 // 5
    plenty.close()

    peak = Peak()
    store = compute_targets(
        model,
        examples,
        batch_tokens=BATCH_TOKENS,
        budget=Budget(memory, disk, tmp_path / "targets.bin"),
        on_progress=lambda done: peak.look(done, 400),
    )
    weights = weights_after_training(model, examples, store, lambda step, _loss: peak.look(step, 4))

    assert needed > 20 * 100_000
    # What a chunk's keys, one forward pass and one training step take does not grow with the document.
    assert 0 < peak.bytes < memory + 1_500_000
    assert store.memory_bytes <= memory
    assert memory / 2 < store.memory_bytes
    assert 0.9 * disk < (tmp_path / "targets.bin").stat().st_size <= disk
    assert torch.allclose(weights, expected, atol=2e-3)


def test_a_later_attempt_computes_nothing_that_is_in_the_file(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = document(2560)
    budget = Budget(0, 10**8, tmp_path / "targets.bin")
    seen: list[int] = []

    class KilledError(BaseException):
        pass

    def kill(done: int) -> None:
        if done >= 12:
            raise KilledError

    with pytest.raises(KilledError):
        compute_targets(model, examples, batch_tokens=BATCH_TOKENS, budget=budget, on_progress=kill)
    model.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    resumed = compute_targets(model, examples, batch_tokens=BATCH_TOKENS, budget=budget)
    # Two of the five chunks are left: their prefix, and their examples.
    assert len(examples) == 20
    assert seen == [512, 4 * 23] * 2

    seen.clear()
    whole = compute_targets(model, examples, batch_tokens=BATCH_TOKENS, budget=budget)
    assert seen == []
    unstored = compute_targets(model, examples, batch_tokens=BATCH_TOKENS)
    for store in (resumed, whole):
        for index in range(20):
            assert torch.equal(store.load(index).mean_NH, unstored.load(index).mean_NH)
            assert torch.equal(store.load(index).layers_LNH, unstored.load(index).layers_LNH)
