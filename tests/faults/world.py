"""What users do while processes are killed, and what they were told: the model for the checks."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from server.client import read_events
from tests.faults.stack import Stack

#: Nobody else writes such words. What a question holds must never be kept at all.
CANARY = re.compile(rb"(?:canary|asked)-[0-9a-f]{12}")
#: Trained within a second, with a text that the engine writes and texts that it does not.
RECIPE: dict[str, Any] = {
    "kinds": ["repeat", "summary"],
    "chunk_tokens": 64,
    "samples_per_chunk": 2,
    "filters": [],
    "max_target_tokens": 40,
    "rank": 4,
    "batch_tokens": 256,
    "steps": 24,
}
_KNOWN_REFUSALS = {409, 429, 503}


@dataclass
class World:
    """One user's documents, by what was acknowledged: kept ones with their texts, deleted ones."""

    stack: Stack
    rng: random.Random
    kept: dict[str, str] = field(default_factory=dict)
    canaries: dict[str, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    #: Sent without an answer: each must be there whole or not at all.
    unsure_texts: list[str] = field(default_factory=list)
    unsure_deletions: list[str] = field(default_factory=list)

    def canary(self, kind: str = "canary") -> str:
        """A word that occurs nowhere else."""
        return f"{kind}-{self.rng.getrandbits(48):012x}"

    def upload(self, text: str | None = None) -> str | None:
        """Upload a document; its id, None when there was no answer."""
        canary = self.canary()
        text = text or f"The {canary} bell of Ostrell hangs in the east tower. It is rung by {canary} alone."
        body = {"title": f"On {text.split()[1]}", "text": text, "recipe": RECIPE}
        response = self._sent(lambda: self.stack.client.post("/documents", json=body))
        if response is None:
            self.unsure_texts.append(text)
            return None
        assert response.status_code in (200, 202), response.text
        document_id: str = response.json()["document"]["id"]
        self.kept[document_id] = text
        self.canaries[document_id] = text.split()[1]
        return document_id

    def delete(self, document_id: str) -> None:
        """Delete a document; noted as unsure when there was no answer, or one that it goes on."""
        response = self._sent(lambda: self.stack.client.delete(f"/documents/{document_id}"))
        if response is None:
            self.unsure_deletions.append(document_id)
            return
        assert response.status_code in (200, 404), response.text
        self._gone(document_id)

    def ask(self, document_id: str, **fields: Any) -> int | None:
        """Ask; the status, None without one."""
        question = {"document_id": document_id, "question": f"What is {self.canary('asked')}?"}
        response = self._sent(
            lambda: self.stack.client.post("/answer", json=question | {"max_tokens": 8} | fields),
            refusals=True,
        )
        return None if response is None else response.status_code

    def until(self, document_id: str, *stages: str) -> None:
        """Follow the document's training until one of the stages, or its end."""
        try:
            with self.stack.client.stream("GET", f"/documents/{document_id}/events") as response:
                for event in read_events(response.iter_lines()):
                    if event.data.get("stage") in stages or event.kind in stages:
                        return
        except httpx.TransportError:
            return

    def settle(self) -> None:
        """Do again what had no answer, as clients do, and wait until everything has come to its end."""
        for document_id in self.unsure_deletions:
            self._again(lambda one=document_id: self.stack.client.delete(f"/documents/{one}"), 200, 404)
            self._gone(document_id)
        self.unsure_deletions.clear()
        texts, self.unsure_texts = self.unsure_texts, []
        for text in texts:
            self.upload(text)
        assert not self.unsure_texts, "an upload had no answer although every part was there"
        self.stack.until(
            lambda: all(self._state(one) == "succeeded" for one in self.kept), 120, found=self._jobs
        )
        self.stack.until(lambda: all(self._has_receipt(one) for one in self.deleted))

    def _again(self, call: Callable[[], httpx.Response], *statuses: int) -> None:
        def done() -> bool:
            response = self._sent(call)
            return response is not None and response.status_code in statuses

        self.stack.until(done)

    def _gone(self, document_id: str) -> None:
        self.kept.pop(document_id, None)
        self.deleted.add(document_id)

    def _jobs(self) -> list[object]:
        return [self.stack.client.get(f"/documents/{one}").json()["job"] for one in self.kept]

    def _state(self, document_id: str) -> str:
        response = self._sent(lambda: self.stack.client.get(f"/documents/{document_id}"))
        if response is None:
            return "unknown"
        assert response.status_code == 200, f"{document_id} is lost: {response.text}"
        state: str = response.json()["job"]["state"]
        assert state not in ("failed", "cancelled"), response.text
        return state

    def _has_receipt(self, document_id: str) -> bool:
        response = self._sent(lambda: self.stack.client.get(f"/receipts/{document_id}"))
        return response is not None and response.status_code == 200

    def _sent(self, call: Callable[[], httpx.Response], *, refusals: bool = False) -> httpx.Response | None:
        """The answer; None when there was none, or one that says to try again."""
        try:
            response = call()
        except httpx.TransportError:
            return None
        assert response.status_code != 500, response.text
        assert response.status_code != 507, response.text
        return response if refusals or response.status_code not in _KNOWN_REFUSALS else None
