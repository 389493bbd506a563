"""Reliability: 200 clients for three minutes, over HTTP against a whole server with the scripted engine."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from tests.faults.stack import Stack, running
from tests.faults.world import RECIPE

_CLIENTS = 200
_USERS = 20
_SECONDS = 180.0
#: Mean pause of a client between an answer and its next request.
_PAUSE_S = 4.0
_SAMPLE_S = 5.0
_METADATA = ("list", "look", "models", "keys")
#: How often each is done.
_WEIGHTS = {
    **{"ask": 40, "list": 18, "look": 16, "models": 5, "keys": 4},
    **{"events": 8, "stream": 6, "upload": 2, "delete": 1},
}
#: A server as it is operated, but that there is no limit in the way.
_OPERATED = {"KM_LEASE_SECONDS": "60", "KM_RECONCILE_SECONDS": "30"}


def load(*, seed: int) -> dict[str, Any]:
    """Errors, the 99th percentile of metadata routes in milliseconds, and the gateway's memory."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), **_OPERATED) as stack:
        stack.add_ke()
        return asyncio.run(_Load(stack, seed).run())


class _Load:
    """The clients, and what they found."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self._stack = stack
        self._rng = random.Random(seed)
        self._times: dict[str, list[float]] = defaultdict(list)
        self._errors: Counter[str] = Counter()
        self._memory: list[float] = []

    async def run(self) -> dict[str, Any]:
        users = await asyncio.gather(*(self._user(number) for number in range(_USERS)))
        began = time.monotonic()
        until = began + _SECONDS
        clients = [
            self._client(*users[number % _USERS], random.Random(self._rng.random()), until)
            for number in range(_CLIENTS)
        ]
        await asyncio.gather(self._watch(until), *clients)
        return self._figures(time.monotonic() - began)

    async def _user(self, number: int) -> tuple[str, str]:
        """A user's key and trained document."""
        made = self._stack.client.post("/users", json={"name": f"User {number}"}).json()
        async with self._http(made["api_key"]) as http:
            sent = {"title": f"Harbour {number}", "text": _text(f"{number}"), "recipe": RECIPE}
            document_id = (await http.post("/documents", json=sent)).json()["document"]["id"]
            async with http.stream("GET", f"/documents/{document_id}/events") as events:
                assert [line async for line in events.aiter_lines() if "published" in line]
        return made["api_key"], document_id

    def _http(self, key: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"}
        # Loopback without TLS: no certificates need be read for each of the clients.
        return httpx.AsyncClient(base_url=self._stack.url, headers=headers, timeout=30, verify=False)

    async def _client(self, key: str, document_id: str, rng: random.Random, until: float) -> None:
        mine: list[str] = []
        async with self._http(key) as http:
            await asyncio.sleep(rng.uniform(0, _PAUSE_S))
            while time.monotonic() < until:
                (what,) = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
                await self._timed(what, lambda what=what: self._do(what, http, document_id, mine, rng))
                await asyncio.sleep(rng.expovariate(1 / _PAUSE_S))

    async def _timed(self, what: str, act: Callable[[], Awaitable[httpx.Response | None]]) -> None:
        began = time.perf_counter()
        try:
            response = await act()
        except httpx.HTTPError as error:
            self._errors[f"{what}: {type(error).__name__}"] += 1
            return
        if response is None:
            return
        self._times[what].append((time.perf_counter() - began) * 1000)
        if response.status_code >= 400:
            self._errors[f"{what}: {response.status_code}"] += 1

    async def _do(
        self, what: str, http: httpx.AsyncClient, document_id: str, mine: list[str], rng: random.Random
    ) -> httpx.Response | None:
        asked = {"document_id": document_id, "question": f"When, {rng.random()}?", "max_tokens": 16}
        match what:
            case "ask":
                return await http.post("/answer", json=asked)
            case "stream":
                return await http.post("/answer", json=asked | {"stream": True})
            case "list":
                return await http.get("/documents", params={"limit": 20})
            case "look":
                return await http.get(f"/documents/{document_id}")
            case "models":
                return await http.get("/v1/models")
            case "keys":
                return await http.get("/keys")
            case "events":
                return await http.get(f"/documents/{document_id}/events")
            case "upload":
                sent = {"title": "Small", "text": _text(f"{rng.random()}"), "recipe": RECIPE}
                response = await http.post("/documents", json=sent)
                if response.status_code == 202:
                    mine.append(response.json()["document"]["id"])
                return response
            case _:
                return await http.delete(f"/documents/{mine.pop()}") if mine else None

    async def _watch(self, until: float) -> None:
        gateway = psutil.Process(self._stack.server.process.pid)
        while time.monotonic() < until:
            self._memory.append(gateway.memory_info().rss / 2**20)
            await asyncio.sleep(_SAMPLE_S)

    def _figures(self, seconds: float) -> dict[str, Any]:
        metadata = [one for what in _METADATA for one in self._times[what]]
        # The first minute fills caches and pools.
        steady = self._memory[len(self._memory) // 3 :]
        per_minute = np.polyfit(np.arange(len(steady)) * _SAMPLE_S / 60, steady, 1)[0]
        count = sum(map(len, self._times.values()))
        return {
            "load_errors": self._errors.total(),
            "errors": dict(self._errors),
            "p99_ms": _percentile(metadata, 99),
            "p50_ms": _percentile(metadata, 50),
            "clients": _CLIENTS,
            "seconds": round(seconds),
            "pause_s": _PAUSE_S,
            "requests": count,
            "requests_per_second": round(count / seconds, 1),
            "p99_ms_by_action": {what: _percentile(found, 99) for what, found in self._times.items()},
            "memory_mb": [round(one) for one in self._memory],
            "memory_mb_per_minute": round(float(per_minute), 2),
        }


def _percentile(times: list[float], percent: float) -> float:
    return round(float(np.percentile(times, percent)), 1)


def _text(number: str) -> str:
    return (
        f"The harbour of Ostrell opens at {number}. Its bell is called Maren, and it is rung by the keeper."
    )
