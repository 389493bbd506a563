"""Run in a child on a small disk: every operation that writes, with the disk full at each of its writes.

Each time: a clear failure or success, nothing half-written, and it works again once there is room. Prints one
JSON line for each operation: how many writes it makes, and how it failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import Any

import structlog
from httpx import AsyncClient, Response
from sqlalchemy.exc import OperationalError

from km_registry.types import Document, Principal
from server.doctor import examined
from tests.faults.disk import Disk
from tests.inprocess import Place, place
from tests.support import stage_km, write_ke
from tests.unit.server.conftest import client_of, train

#: What a client may be told: no room, or that something is away for a moment.
CLEAR = {"507 disk_full", "503 database_unavailable", "503 deletion_pending", "503 removal_pending"}


class FullError(Exception):
    """The operation was refused; the message says how."""


class Operation(ABC):
    """Something that writes. `prepare` makes what it needs, `act` does it and can be repeated."""

    def __init__(self, made: Place, http: AsyncClient, number: int) -> None:
        self.place, self.http, self.number = made, http, number
        self.principal = made.registry.authenticate(made.admin_key)
        assert isinstance(self.principal, Principal)
        self.text = (
            f"The harbour of Ostrell opens at {number}. Its {type(self).__name__} bell is called Maren."
        )

    async def prepare(self) -> None:  # noqa: B027  most need nothing
        """Make what is needed, with room for it."""

    @abstractmethod
    async def act(self) -> None:
        """FullError, OSError or OperationalError when there is no room."""

    async def upload(self, text: str | None = None) -> Document:
        """A document."""
        sent = {"title": "Harbour", "text": text or self.text}
        response = _done(await self.http.post("/documents", json=sent))
        await self.place.state.retriever.settled()
        return self.place.registry.get_document(self.principal, response.json()["document"]["id"])


class Upload(Operation):
    """Text, rows, passages."""

    async def act(self) -> None:
        document = await self.upload()
        assert self.place.registry.read_text(document.id) == self.text


class Change(Operation):
    """A new version."""

    async def prepare(self) -> None:
        self.document = await self.upload()

    async def act(self) -> None:
        text = f"{self.text} It is rung twice."
        _done(await self.http.put(f"/documents/{self.document.id}", json={"text": text}))
        await self.place.state.replacements.settled()
        await self.place.state.retriever.settled()
        assert self.place.registry.read_text(self.document.id) == text


class Publish(Operation):
    """A KM, staged and published."""

    async def prepare(self) -> None:
        self.document = await self.upload()

    async def act(self) -> None:
        registry = self.place.registry
        if registry.km_of(self.document.id) is not None:
            return
        # A worker whose disk is full cannot say so: its lease runs out.
        registry.unfinished_jobs(stale_after=-1)
        job = registry.claim(registry.job_of(self.document.id).id)
        assert job is not None
        registry.publish(job.id, job.attempt, stage_km(registry, self.document, job), {})


class Compose(Operation):
    """A composite, made for an answer."""

    async def prepare(self) -> None:
        self.document = await self.upload()
        train(self.place.registry, self.document.id, self.principal)

    async def act(self) -> None:
        asked = {"document_id": self.document.id, "question": "When?", "mode": "km", "ke": "default"}
        _done(await self.http.post("/answer", json=asked))


class Delete(Operation):
    """A deletion, which goes on by itself once it was begun."""

    async def prepare(self) -> None:
        self.document = await self.upload()
        train(self.place.registry, self.document.id, self.principal)

    async def act(self) -> None:
        await self.place.state.deletions.resume()
        response = await self.http.delete(f"/documents/{self.document.id}")
        if _refused(response).status_code != 404:
            _done(response)
        # A refusal is noted, so it needs room as well.
        assert _refused(await self.http.get(f"/documents/{self.document.id}")).status_code == 404
        _done(await self.http.get(f"/receipts/{self.document.id}"))


class User(Operation):
    """A user with a key."""

    async def act(self) -> None:
        response = await self.http.post("/users", json={"name": f"User {self.number}"})
        if response.status_code != 409:
            _done(response)


OPERATIONS: dict[str, type[Operation]] = {
    one.__name__.lower(): one for one in (Upload, Change, Publish, Compose, Delete, User)
}


def _refused(response: Response) -> Response:
    if response.status_code >= 500:
        raise FullError(f"{response.status_code} {response.json()['error']['code']}")
    return response


def _done(response: Response) -> Response:
    assert _refused(response).status_code < 400, response.text
    return response


class Examination:
    """One operation at every write that it makes, or at every `stride`-th."""

    def __init__(self, made: Place, http: AsyncClient, disk: Disk) -> None:
        self._place, self._http, self._disk = made, http, disk
        self._number = 0

    async def of(self, kind: type[Operation], stride: int) -> dict[str, Any]:
        """How many writes it makes, how it failed at them, and what was wrong afterwards."""
        failures: Counter[str] = Counter()
        problems: list[str] = []
        call = 1
        while True:
            self._number += 1
            operation = kind(self._place, self._http, self._number)
            await operation.prepare()
            failure = await self._try(operation, call)
            reached = self._disk.writes >= call
            self._disk.room()
            if failure is not None:
                failures[failure] += 1
            problems += [f"write {call}: {one}" for one in await self._afterwards(operation, failure)]
            if not reached:
                return {"writes": call - 1, "failures": dict(failures), "problems": problems}
            call += stride

    async def _try(self, operation: Operation, call: int) -> str | None:
        self._disk.full_at(call)
        try:
            await operation.act()
        except FullError as error:
            return str(error)
        except (OSError, OperationalError) as error:
            return type(error).__name__
        return None

    async def _afterwards(self, operation: Operation, failure: str | None) -> list[str]:
        problems = []
        if failure is not None and failure[0].isdigit() and failure not in CLEAR:
            problems.append(f"an unclear failure: {failure}")
        await operation.act()
        await self._place.state.composites.settled()
        found = [f"{one.subject}: {one.problem}" for one in examined(self._place.state.settings)]
        root = self._place.state.settings.data_dir
        left = [str(path.relative_to(root)) for path in root.rglob(".*")]
        return problems + found + [f"{path} is unfinished" for path in left]


async def examine(data_dir: Path, names: list[str], stride: int) -> None:
    """Print one line for each operation."""
    disk = Disk()
    async with place(data_dir) as made, client_of(made.app, made.admin_key) as http:
        await made.state.retriever.ready()
        ke = write_ke(data_dir.parent / "ke")
        made.registry.kes.register(ke, made.state.base_model, make_default=True)
        examination = Examination(made, http, disk)
        for name in names:
            found = await examination.of(OPERATIONS[name], stride)
            sys.stdout.write(json.dumps({"operation": name, **found}) + "\n")


def main() -> None:
    """Read the arguments, examine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--operations", default=",".join(OPERATIONS))
    parser.add_argument("--stride", type=int, default=1)
    given = parser.parse_args()
    # What it prints is read by whoever started it.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(examine(given.data_dir, given.operations.split(","), given.stride))


if __name__ == "__main__":
    main()
