"""The scripted engine that replicas on Ray are made of in tests: it takes its time, and says who speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.engine.base import GenerationRequest
from server.engine.scripted import Pace, ScriptedEngine

#: Of a replica, if not said otherwise.
SLOTS = 2


class Letters:
    """A token for every character."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, token_ids))


def long_reply(request: GenerationRequest) -> str:
    speaker = request.adapter.name if request.adapter else "base"
    drawn = request.seed if request.temperature else ""
    return f"{speaker} says{drawn} at length: " + "la " * 40


def slow_engine(**sizes: Any) -> ScriptedEngine:
    """One that writes fifty tokens a second."""
    return ScriptedEngine(Letters(), reply=long_reply, pace=Pace(token_s=0.02), **sizes)
