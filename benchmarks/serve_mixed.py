"""Mixed load: questions of all kinds while documents come and go. Nothing fails, and nothing grows."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.serve_engines import median
from benchmarks.serve_server import Served

#: Documents that are kept; beyond, the oldest is deleted.
_KEPT = 24
_ASKERS = 6
#: What the server may answer with: answers, what was deleted meanwhile, and its own limits.
_DELIBERATE = (200, 404, 409, 429, 503)


class Load:
    """Askers, a publisher and a deleter, for some seconds, on one server."""

    def __init__(self, served: Served, *, every_s: float, seed: int = 0) -> None:
        """A document is published `every_s` seconds."""
        self._served = served
        self._every_s = every_s
        self._draw = random.Random(seed)
        self._documents: list[str] = []
        self._deleted: set[str] = set()
        self._receipted: list[str] = []
        self._enough = asyncio.Event()
        #: Answers by status, and what no server should do.
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.published = self.deleted = 0

    async def run(self, enough: Callable[[], bool]) -> None:
        """Go on until `enough`, asked after every document, and let everything end that was begun."""
        self._documents = [await self._served.published() for _ in range(4)]
        tasks = [asyncio.create_task(self._ask()) for _ in range(_ASKERS)]
        tasks.append(asyncio.create_task(self._publish(enough)))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        self._enough.set()
        await asyncio.gather(*tasks)

    async def _ask(self) -> None:
        while not self._enough.is_set():
            # Also what is gone for good: from its receipt on, not from when somebody begins to delete it.
            document_id = self._draw.choice([*self._documents, *self._receipted[-1:]])
            began_deleted = document_id in self._receipted
            kind = self._draw.choice((self._answer, self._streamed, self._cut_short, self._base))
            status = await kind(document_id)
            self.statuses[status] += 1
            gone = document_id in self._deleted
            if (
                status not in _DELIBERATE
                or (status in (404, 409) and not gone)
                or (status == 200 and began_deleted and kind != self._base)
            ):
                self.wrong.append(f"{kind.__name__} {status}")

    async def _answer(self, document_id: str) -> int:
        sent = {"model": document_id, "prompt": "The harbour opens", "max_tokens": 12}
        return (await self._served.http.post("/v1/completions", json=sent)).status_code

    async def _base(self, _: str) -> int:
        sent = {"model": "base", "prompt": "The harbour opens", "max_tokens": 12}
        return (await self._served.http.post("/v1/completions", json=sent)).status_code

    async def _streamed(self, document_id: str) -> int:
        return await self._stream(document_id, most=10_000)

    async def _cut_short(self, document_id: str) -> int:
        """A client that goes away."""
        return await self._stream(document_id, most=2)

    async def _stream(self, document_id: str, *, most: int) -> int:
        sent = {"document_id": document_id, "question": "When does it open?", "mode": "km", "stream": True}
        async with self._served.http.stream("POST", "/answer", json=sent | {"max_tokens": 16}) as response:
            async for _ in response.aiter_lines():
                most -= 1
                if not most:
                    break
            return response.status_code

    async def _publish(self, enough: Callable[[], bool]) -> None:
        while not self._enough.is_set():
            document_id = await self._served.published()
            self._documents.append(document_id)
            self.published += 1
            if len(self._documents) > _KEPT or self._draw.random() < 0.3:
                await self._delete(self._draw.choice(self._documents[:-1]))
            if enough():
                self._enough.set()
            try:
                await asyncio.wait_for(self._enough.wait(), self._every_s)
            except TimeoutError:
                continue

    async def _delete(self, document_id: str) -> None:
        self._deleted.add(document_id)
        response = await self._served.http.delete(f"/documents/{document_id}")
        self._documents.remove(document_id)
        self._receipted.append(document_id)
        self.deleted += 1
        if response.status_code != 200:
            self.wrong.append(f"delete {response.status_code}")


async def measure(
    served: Served, *, seconds: float, every_s: float, rss: Callable[[], int], samples: int = 50
) -> dict[str, Any]:
    """The load, and how memory (`rss`, bytes) grew."""
    load, seen = Load(served, every_s=every_s), []
    began = time.perf_counter()

    async def watch() -> None:
        while True:
            seen.append(rss())
            await asyncio.sleep(seconds / samples)

    watching = asyncio.create_task(watch())
    await load.run(lambda: time.perf_counter() - began >= seconds)
    watching.cancel()
    adapters = (await served.state.engine.status()).adapters
    return {
        "mixed_seconds": round(time.perf_counter() - began, 1),
        "mixed_requests": sum(load.statuses.values()),
        "mixed_statuses": {str(status): count for status, count in sorted(load.statuses.items())},
        "mixed_published": load.published,
        "mixed_deleted": load.deleted,
        "mixed_wrong": load.wrong[:10],
        "mixed_loads": adapters.loads,
        "mixed_swaps": adapters.swaps,
        "mixed_growth_percent": growth_percent(seen),
    }


def growth_percent(seen: list[int]) -> float:
    """How much larger the last fifth of the readings is than the second, when all was warm (medians)."""
    fifth = max(1, len(seen) // 5)
    return round(100 * (median(seen[-fifth:]) / median(seen[fifth : 2 * fifth]) - 1), 2)
