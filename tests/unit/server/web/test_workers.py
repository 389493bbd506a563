"""Workers on the page: who trains what, and what nobody would train."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.types import WorkerSeen
from tests.unit.server.conftest import TEXT, Someone
from tests.unit.server.web.conftest import Browser


def seen(name: str, *queues: str, run_id: str | None = None, silent_s: float = 0.0) -> WorkerSeen:
    now = datetime.now(UTC)
    seen_at = now - timedelta(seconds=silent_s)
    return WorkerSeen(name, "gpu-3", queues, run_id, now - timedelta(hours=1), seen_at)


def rows(html: str) -> list[str]:
    """The table's rows, as they are read."""
    return [re.sub(r"<[^>]+>|\s+", " ", row) for row in html.split("<tr>")[2:]]


async def test_who_trains_what(
    admins_page: Browser, ada: Someone, queue: MemoryJobQueue, registry: Registry
) -> None:
    job = registry.job_of(await ada.upload())
    registry.claim(job.id, run_id="run-1")
    queue.present = [
        seen("one", "default", run_id="run-1", silent_s=4),
        seen("two", "large-gpu", "default"),
    ]
    html = await admins_page.see("/ui/workers")
    one, two = rows(html)
    assert all(word in one for word in ("one", "gpu-3", "default", job.id, "4 s ago"))
    assert all(word in two for word in ("large-gpu, default", "idle", "just now"))
    # Administrators read no document by being administrators.
    assert "Harbour" not in html
    assert "which no worker serves" not in html


async def test_what_waits_for_a_worker_that_is_not_there(
    admins_page: Browser, ada: Someone, queue: MemoryJobQueue
) -> None:
    for number, name in enumerate(("large-gpu", "large-gpu", "small")):
        sent = {"title": "t", "text": f"{TEXT} {number}", "recipe": {"queue": name}}
        await ada.http.post("/documents", json=sent)
    queue.present = [seen("one", "default")]
    html = re.sub(r"\s+", " ", await admins_page.see("/ui/workers/rows"))
    assert "2 trainings wait in the queue <code>large-gpu</code>, which no worker serves" in html
    assert "A training waits in the queue <code>small</code>" in html
    assert "km worker --queue large-gpu" in html
    queue.present.append(seen("two", "large-gpu", "small"))
    assert "which no worker serves" not in await admins_page.see("/ui/workers/rows")


async def test_without_workers_it_says_how_to_start_one(admins_page: Browser) -> None:
    html = await admins_page.see("/ui/workers")
    assert "No worker was heard of" in html
    assert "Start one with <code>km worker</code>" in html
    assert "<table" not in html


async def test_it_is_followed_and_for_administrators_alone(admins_page: Browser, page: Browser) -> None:
    assert 'hx-trigger="every 2s"' in await admins_page.see("/ui/workers/rows")
    assert '<a href="/ui/workers" aria-current="page">Workers</a>' in await admins_page.see("/ui/workers")
    assert "/ui/workers" not in await page.see("/")
    assert (await page.http.get("/ui/workers")).status_code == 403
