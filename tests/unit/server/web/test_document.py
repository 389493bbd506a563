"""A document's page: its training as it streams, cancelled and begun again; versions; receipts."""

from __future__ import annotations

import asyncio
import json
import re

from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.types import JobState, Stage
from server.app import AppState
from server.web.context import Web
from server.web.document import _panels
from tests.unit.server.conftest import TEXT, Someone, error_of, train
from tests.unit.server.web.conftest import Browser, field


async def test_it_shows_what_there_is(page: Browser, ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload(title="Harbour <rules>")
    html = await page.see(f"/ui/documents/{document_id}")
    assert "<h1>Harbour &lt;rules&gt;</h1>" in html
    assert "sse-connect" in html
    assert "Cancel the training" in html
    assert "Auto</strong> answers by retrieval meanwhile" in html
    train(registry, document_id, ada.principal)
    html = await page.see(f"/ui/documents/{document_id}")
    assert "sse-connect" not in html
    assert "80 % recovered" in html
    assert "Train again" in html


async def test_progress_streams_until_the_km_is_there(
    ada: Someone, state: AppState, registry: Registry, app: object
) -> None:
    document_id = await ada.upload()
    web: Web = app.state.web  # type: ignore[attr-defined]
    panels = _panels(state, web, ada.principal, document_id)
    assert "Waiting for its turn" in str((await anext(panels)).data)

    def work() -> None:
        job = registry.claim(registry.job_of(document_id).id)
        assert job is not None
        registry.progress(job.id, 1, Stage.TRAINING, 40, 100, loss=2.5, seconds_left=12.0)
        registry.progress(job.id, 1, Stage.TRAINING, 50, 100, recovered=0.5)
        registry.release(job.id, 1)
        train(registry, document_id, ada.principal)

    rest = asyncio.create_task(_all(panels))
    await asyncio.to_thread(work)
    events = await asyncio.wait_for(rest, 10)
    assert [event.event for event in events][-2:] == ["training", "end"]
    assert "Step 40 of 100, 12 s left in this stage" in str(events[0].data)
    assert 'class="curve share" points="32.0,164.0 ' in str(events[1].data)
    assert "The KM is trained and answers" in str(events[-2].data)


async def _all(panels: object) -> list[object]:
    return [one async for one in panels]  # type: ignore[attr-defined]


async def test_what_has_happened_is_one_panel(page: Browser, ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    response = await page.http.get(f"/ui/documents/{document_id}/training")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.count("event: training") == 1
    assert "event: end" in response.text


async def test_cancelled_and_begun_again(
    page: Browser, ada: Someone, registry: Registry, queue: MemoryJobQueue
) -> None:
    document_id = await ada.upload()
    place = f"/ui/documents/{document_id}"
    html = (await page.do(f"{place}/cancel")).text
    assert registry.job_of(document_id).state is JobState.CANCELLED
    assert queue.waiting() == []
    assert html.count("hx-swap-oob") == 4
    assert "Try again" in html
    assert "nothing to cancel" in error_of(await page.do(f"{place}/cancel"), 409)["message"]
    assert "Cancel the training" in (await page.do(f"{place}/train")).text
    assert queue.waiting() == [registry.job_of(document_id).id]


async def test_one_that_answers_is_trained_anew(page: Browser, ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    response = await page.do(f"/ui/documents/{document_id}/train")
    assert response.status_code == 200, response.text
    assert "KM ready" in response.text
    assert 'newest</span> <span class="chip is-succeeded">KM</span>' in response.text
    assert registry.job_of(document_id).state is JobState.QUEUED


async def test_a_newer_text_is_a_version(page: Browser, ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    files = {"file": ("newer.txt", f"{TEXT} And there is a cat.".encode())}
    response = await page.do(f"/ui/documents/{document_id}", "PUT", files=files)
    assert response.status_code == 200, response.text
    html = await page.see(f"/ui/documents/{document_id}")
    assert "The KM knows version 1" in html
    response = await page.do(f"/ui/documents/{document_id}/versions/1/delete")
    assert "a former version" in response.text


async def test_deleting_gives_the_receipt(page: Browser, ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    place = f"/ui/documents/{document_id}"
    form = {"csrf": field(await page.see(place), "csrf"), "title": "Harbour"}
    response = await page.http.post(f"{place}/delete", data=form)
    assert response.status_code == 200, response.text
    text = re.sub(r"<[^>]+>|\s+", " ", response.text)
    assert "“Harbour” is gone" in text
    assert re.search(r"kms +1 ", text)
    assert (await page.http.get(place)).status_code == 404
    again = await page.see(f"/ui/receipts/{document_id}")
    # A receipt holds no content, not even the title.
    assert "Harbour" not in again
    assert document_id in again


async def test_the_km_alone_may_go(page: Browser, ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    response = await page.do(f"/ui/documents/{document_id}/forget-km")
    assert "the KM alone" in response.text
    assert "There is no KM" in await page.see(f"/ui/documents/{document_id}")
    assert json.loads((await ada.http.get(f"/documents/{document_id}")).text)["km"] is None
