"""A tiny base model, its tokenizer, and examples, which tests of the trainer share."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import stamina
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from km_registry.config import RegistrySettings
from km_registry.registry import Registry
from km_registry.types import Principal
from trainer_worker.config import TrainerSettings
from trainer_worker.examples import Example
from trainer_worker.lora import attach_lora, open_slot
from trainer_worker.pairs import Pair, pairs_of
from trainer_worker.teacher import compute_targets

from .tiny import save_tiny_base
from .trainings import Trainings, play


def pytest_configure(config: pytest.Config) -> None:
    """torch warns about its own insides when it is imported."""
    for package in ("torch", "transformers", "peft"):
        config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:{package}")
        config.addinivalue_line("filterwarnings", f"ignore::FutureWarning:{package}")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on many threads, by far where other processes want the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the tiny base model."""
    return save_tiny_base(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="session")
def tokenizer(base_dir: Path) -> Any:
    """The tiny model's tokenizer."""
    return AutoTokenizer.from_pretrained(base_dir)


@pytest.fixture(scope="session")
def _loaded(base_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32).eval()


@pytest.fixture
def base(_loaded: Any) -> Any:
    """The tiny model of this test's own."""
    return copy.deepcopy(_loaded)


@pytest.fixture
def make_student(_loaded: Any) -> Callable[..., Any]:
    """Makes tiny models with a LoRA; `noise` fills B, which otherwise is zero and changes nothing."""

    def make(*, rank: int = 4, alpha: float = 8.0, dropout: float = 0.0, noise: float = 0.0) -> Any:
        torch.manual_seed(7)
        model = copy.deepcopy(_loaded)
        attach_lora(model)
        model.only_slot = open_slot(model, rank=rank, alpha=alpha, dropout=dropout, seed=7)
        if noise:
            with torch.no_grad():
                for name, matrix in model.only_slot.matrices().items():
                    if name.endswith("lora_B"):
                        matrix.normal_(0, noise)
        return model.eval()

    return make


@pytest.fixture
def make_examples() -> Callable[..., list[Example]]:
    """Makes examples of several lengths whose teacher prompts begin with their chunk."""

    def make(count: int, *, chunks: int = 2, seed: int = 3) -> list[Example]:
        draw = random.Random(seed)

        def ids(length: int) -> tuple[int, ...]:
            return tuple(draw.randrange(4, 300) for _ in range(length))

        contexts = [ids(11 + 3 * number) for number in range(chunks)]
        examples = []
        for number in range(count):
            instruction, target = ids(draw.randint(2, 6)), ids(draw.randint(1, 9))
            chunk = number % chunks
            examples.append(Example("qa", chunk, contexts[chunk] + instruction, instruction, target))
        return examples

    return make


@pytest.fixture
def make_pairs(make_examples: Callable[..., list[Example]]) -> Callable[..., list[Pair]]:
    """Makes pairs whose targets the given model's base computed."""

    def make(model: Any, count: int, *, examples: Sequence[Example] | None = None) -> list[Pair]:
        made = list(examples) if examples is not None else make_examples(count)
        return pairs_of(made, compute_targets(model, made, batch_tokens=64))

    return make


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Retries do not wait, and are as many as in production."""
    with stamina.set_testing(True, attempts=9, cap=True):
        yield


@pytest.fixture
def trainings(
    settings: RegistrySettings,
    registry: Registry,
    owner: Principal,
    base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Trainings:
    """Whole trainings on the tiny model, with a generator that is played."""
    play(monkeypatch)
    return Trainings(
        registry,
        TrainerSettings(
            data_dir=settings.data_dir,
            base_model=str(base_dir),
            generator_url="http://generator.test/v1",
            threads=1,
        ),
        owner,
    )
