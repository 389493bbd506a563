"""Answers that are written together."""

from __future__ import annotations

import pytest

from server.planning.clock import Clock
from server.planning.decoding import Decoding
from server.planning.request import Request


class Batch:
    """A batch whose steps take a second for each answer, or what `step_s` says; when each has ended."""

    def __init__(self, step_s: object = None) -> None:
        self.clock, self.ends = Clock(), {}
        self.decoding = Decoding(self.clock, step_s or (lambda answers, _: float(answers)), self.ended)

    def ended(self, request: Request) -> None:
        self.ends[request.number] = self.clock.now

    def add(self, number: int, steps: float, *, at: float = 0.0, prompt: int = 0) -> None:
        request = Request(number, "base", 0, None, prompt, 0.0, steps, at)
        self.clock.after(at, lambda _: self.decoding.add(request))

    def at(self, seconds: float, do: str) -> None:
        self.clock.after(seconds, lambda _: getattr(self.decoding, do)())

    def run(self) -> dict[int, float]:
        while True:
            try:
                self.clock.step()
            except IndexError:
                return self.ends


def test_one_alone() -> None:
    batch = Batch()
    batch.add(1, 5, at=2)
    assert batch.run() == {1: 7.0}


def test_two_share() -> None:
    batch = Batch()
    batch.add(1, 4)
    batch.add(2, 1, at=2)
    # Two steps alone, one in two seconds beside the other, one alone.
    assert batch.run() == {2: 4.0, 1: 5.0}


def test_those_of_one_length_end_at_one_moment() -> None:
    batch = Batch()
    batch.add(1, 3)
    batch.add(2, 3)
    assert batch.run() == {1: 6.0, 2: 6.0}
    assert len(batch.decoding) == 0


def test_nothing_is_written_in_a_pause() -> None:
    batch = Batch()
    batch.add(1, 4)
    batch.at(1, "pause")
    batch.add(2, 1, at=3)
    batch.at(5, "resume")
    assert batch.run() == {2: 7.0, 1: 9.0}


def test_a_step_takes_longer_the_more_is_looked_back_on() -> None:
    batch = Batch(lambda answers, context: 1.0 + context)
    batch.add(1, 2, prompt=3)
    batch.add(2, 1, at=4, prompt=1)
    # One step of 4 s, then one of 5 s.
    assert batch.run() == {1: 9.0, 2: 9.0}


def test_what_has_no_step_ends_at_once() -> None:
    batch = Batch()
    batch.add(1, 0, at=1)
    assert batch.run() == {1: pytest.approx(1.0)}
