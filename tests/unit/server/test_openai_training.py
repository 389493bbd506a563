"""OpenAI's files and fine-tuning jobs, with OpenAI's own client over the loopback: the whole main job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from tests.unit.server.conftest import TEXT, Someone, error_of, train

MESSAGES = [{"role": "user", "content": "When does it open?"}]


@pytest.fixture
async def client(url: str, ada: Someone) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=ada.key, max_retries=0) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "harbour.md"
    path.write_text(TEXT)
    return path


async def test_the_main_job(
    client: AsyncOpenAI, ada: Someone, registry: Registry, queue: MemoryJobQueue, file: Path
) -> None:
    uploaded = await client.files.create(file=file, purpose="fine-tune")
    assert (uploaded.filename, uploaded.bytes) == ("harbour", len(TEXT))
    job = await client.fine_tuning.jobs.create(model="base", training_file=uploaded.id)
    assert (job.status, job.fine_tuned_model, job.training_file) == ("queued", None, uploaded.id)
    assert queue.waiting() == [job.id]
    km = await asyncio.to_thread(train, registry, uploaded.id, ada.principal)
    job = await client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.fine_tuned_model) == ("succeeded", km.id)
    assert job.finished_at is not None
    events = [event async for event in client.fine_tuning.jobs.list_events(job.id)]
    assert [event.message for event in events] == ["The KM is trained", "Waiting for its turn"]
    answer = await client.chat.completions.create(model=job.fine_tuned_model, messages=MESSAGES)
    assert answer.choices[0].message.content
    # What is trained already is not trained again.
    assert (await client.fine_tuning.jobs.create(model="base", training_file=uploaded.id)).id == job.id
    assert (await client.files.delete(uploaded.id)).deleted
    assert [one.id async for one in client.files.list()] == []
    with pytest.raises(openai.NotFoundError):
        await client.fine_tuning.jobs.retrieve(job.id)
    assert (await ada.http.get(f"/receipts/{uploaded.id}")).status_code == 200


async def test_a_recipe_takes_the_first_trainings_place(
    client: AsyncOpenAI, file: Path, registry: Registry, queue: MemoryJobQueue
) -> None:
    uploaded = await client.files.create(file=file, purpose="user_data")
    first = registry.job_of(uploaded.id)
    wanted = {"recipe": {"preset": "fast"}}
    job = await client.fine_tuning.jobs.create(
        model="base", training_file=uploaded.id, seed=7, extra_body=wanted
    )
    assert (job.id != first.id, job.seed) == (True, 7)
    assert queue.waiting() == [job.id]
    recipe = registry.job_recipe(job.id)
    assert (recipe["preset"], recipe["seed"]) == ("fast", 7)
    again = await client.fine_tuning.jobs.create(
        model="base", training_file=uploaded.id, seed=7, extra_body=wanted
    )
    assert again.id == job.id


async def test_a_training_is_cancelled_and_begun_again(
    client: AsyncOpenAI, file: Path, queue: MemoryJobQueue
) -> None:
    uploaded = await client.files.create(file=file, purpose="fine-tune")
    job = await client.fine_tuning.jobs.create(
        model="base", training_file=uploaded.id, method={"type": "supervised"}
    )
    assert (await client.fine_tuning.jobs.cancel(job.id)).status == "cancelled"
    assert queue.waiting() == []
    with pytest.raises(openai.ConflictError):
        await client.fine_tuning.jobs.cancel(job.id)
    again = await client.fine_tuning.jobs.create(model="base", training_file=uploaded.id)
    assert (again.id != job.id, again.status) == (True, "queued")
    with pytest.raises(openai.ConflictError):
        await client.fine_tuning.jobs.cancel(job.id)


async def test_a_failure_says_why(client: AsyncOpenAI, file: Path, registry: Registry) -> None:
    uploaded = await client.files.create(file=file, purpose="fine-tune")
    claimed = registry.claim(registry.job_of(uploaded.id).id)
    assert claimed is not None
    registry.fail(claimed.id, claimed.attempt, "no memory")
    job = await client.fine_tuning.jobs.retrieve(claimed.id)
    assert (job.status, job.error and job.error.message) == ("failed", "no memory")
    newest = (await client.fine_tuning.jobs.list_events(claimed.id, limit=1)).data
    assert [(event.level, event.message) for event in newest] == [("error", "no memory")]


async def test_lists_have_pages(client: AsyncOpenAI, ada: Someone) -> None:
    uploaded = [await ada.upload(f"{TEXT} {number}") for number in range(3)]
    assert [one.id async for one in client.files.list(limit=2)] == uploaded[::-1]
    jobs = [job.training_file async for job in client.fine_tuning.jobs.list(limit=2)]
    assert jobs == uploaded[::-1]


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"model": "gpt-4o"}, "model"),
        ({"suffix": "mine"}, "suffix"),
        ({"hyperparameters": {"n_epochs": 3}}, "hyperparameters"),
        ({"extra_body": {"recipe": {"steps": 0}}}, "recipe.steps"),
    ],
)
async def test_what_would_have_no_effect_is_refused(
    client: AsyncOpenAI, file: Path, sent: dict[str, object], param: str
) -> None:
    uploaded = await client.files.create(file=file, purpose="fine-tune")
    asked = {"model": "base", "training_file": uploaded.id} | sent
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        await client.fine_tuning.jobs.create(**asked)
    assert refused.value.param == param


async def test_a_file_has_a_purpose_and_comes_as_a_form(
    client: AsyncOpenAI, ada: Someone, file: Path
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        await client.files.create(file=file, purpose="vision")
    assert refused.value.param == "purpose"
    error_of(await ada.http.post("/v1/files", content=json.dumps({"text": TEXT})), 415)
    assert [one.id async for one in client.files.list()] == []
