"""What `km train-ke` gathers from a server: KMs, questions, passages; and what it does not do twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from km_registry.config import RegistrySettings
from km_registry.ke_recipe import KEDocument, KERecipe
from km_registry.registry import Registry
from server.cli import app as cli
from server.engine.scripted import ScriptedEngine
from server.evaluation import rows, state
from server.ke_training.gather import ke_documents
from server.ke_training.run import KERequest, gather

from .conftest import DOCUMENTS, Harness, TrainingQueue


class _Gathering:
    """Gathers from the app, on the same state every time."""

    def __init__(self, harness: Harness, data_dir: Path) -> None:
        self._harness = harness
        self._data_dir = data_dir

    async def __call__(self, **changes: Any) -> list[KEDocument]:
        evaluation = self._harness.evaluation(["sdcd"])
        plan = rows.plan(evaluation.rows, {})
        console = Console(file=self._harness.said)
        request = KERequest(evaluation, KERecipe(), **changes)
        with state.opened(self._harness.out, {}, {}) as kept:
            kept.keep_keys(admin_key=self._harness.admin_key)
            passages = await gather(self._harness.http, request, plan, DOCUMENTS, kept, console)
            return ke_documents(DOCUMENTS, kept, plan.training[0], passages, self._data_dir)


@pytest.fixture
def gathering(harness: Harness, settings: RegistrySettings) -> _Gathering:
    return _Gathering(harness, settings.data_dir)


async def test_every_document_comes_with_its_km_and_its_questions(
    gathering: _Gathering, registry: Registry
) -> None:
    harbour, bell, shop = await gathering()

    assert [one.title for one in (harbour, bell, shop)] == ["Harbour", "Bell", "Shop"]
    assert len({one.km for one in (harbour, bell, shop)}) == 3
    assert all(one.km is not None and (Path(one.km) / "manifest.json").exists() for one in (harbour, bell))
    assert [one.answers for one in harbour.questions] == [("at six", "six"), ("the harbour",)]
    assert (shop.questions[0].choices, shop.questions[0].gold) == (("ships", "rope", "soap and salt"), 1)


async def test_questions_come_with_their_documents_passages(gathering: _Gathering) -> None:
    for found, document in zip(await gathering(), DOCUMENTS, strict=True):
        for question in found.questions:
            assert question.passages
            assert all(passage in document.text for passage in question.passages)


async def test_a_document_of_fewer_passages_gives_those_it_has(gathering: _Gathering) -> None:
    found = await gathering(k=5)

    assert all(len(question.passages) == 1 for one in found for question in one.questions)


async def test_passages_are_looked_up_once(gathering: _Gathering, engine: ScriptedEngine) -> None:
    first = await gathering()
    asked = len(engine.requests)

    assert await gathering() == first
    assert len(engine.requests) == asked


async def test_a_document_whose_training_failed_is_left_out(
    gathering: _Gathering, queue: TrainingQueue
) -> None:
    queue.failing["Bell"] = "no luck"

    assert [one.title for one in await gathering()] == ["Harbour", "Shop"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[1]", "--ke is not a JSON object"),
        ("{", "--ke is not JSON"),
        ('{"steps": 0}', "--ke, steps: Input should be greater than or equal to 1"),
        ('{"sheps": 1}', "--ke, sheps: Extra inputs are not permitted"),
    ],
)
def test_a_recipe_that_is_none_ends_the_command(given: str, said: str) -> None:
    ended = CliRunner().invoke(cli, ["train-ke", "--data", "nowhere", "--ke", given])

    assert ended.exit_code == 2
    assert said in ended.output
