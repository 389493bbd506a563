"""One simulated replica: when first tokens and answers come, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from server.planning.clock import Clock
from server.planning.replica import Replica
from server.planning.request import Request
from tests.unit.server.planning.conftest import replica


class Played:
    """A replica that requests are sent to; first tokens and ends by number."""

    def __init__(self, **fields: Any) -> None:
        self.clock = Clock()
        self.requests: list[Request] = []
        self.ends: dict[int, float] = {}
        self.replica = Replica(self.clock, replica(**fields), 1000, self.ended)

    def ended(self, request: Request) -> None:
        self.ends[request.number] = self.clock.now

    def ask(
        self, adapter: int | None = None, *, at: float = 0.0, prompt: int = 0, document: int = -1
    ) -> None:
        """An answer of ten tokens."""
        mode = "base" if adapter is None else "km"
        request = Request(len(self.requests), mode, document, adapter, prompt, 10, 10, at)
        if document >= 0:
            request.mode = "icl"
        self.requests.append(request)
        self.clock.after(at, self.replica.take, request)

    def run(self) -> tuple[list[float], list[float]]:
        while len(self.ends) < len(self.requests):
            self.clock.step()
        assert self.replica.load == 0
        self.replica.residency.check()
        return [one.first_token for one in self.requests], [self.ends[n] for n in sorted(self.ends)]


def near(*seconds: float) -> Any:
    return pytest.approx(list(seconds))


def test_the_base_model_needs_no_slot() -> None:
    played = Played()
    played.ask()
    assert played.run() == (near(0), near(1))
    assert played.replica.residency.counts.swaps == 0


def test_a_km_is_loaded_and_swapped_first_and_then_is_there() -> None:
    played = Played(load_ms=300, swap_ms=200)
    played.ask(1)
    played.ask(1, at=2)
    assert played.run() == (near(0.5, 2), near(1.5, 3))


def test_a_move_stalls_the_batch_where_it_does() -> None:
    for stalls, ends in ((True, near(1.5, 1.75)), (False, near(1.0, 1.75))):
        played = Played(load_ms=500, moves_stall=stalls, tokens_per_s={1: 10, 2: 20})
        played.ask()
        played.ask(1, at=0.25)
        assert played.run() == (near(0, 0.75), ends)


def test_moves_beside_the_batch_are_made_one_after_the_other() -> None:
    played = Played(load_ms=500, moves_stall=False, tokens_per_s={1: 10, 2: 20})
    played.ask(1)
    played.ask(2)
    assert played.run()[0] == near(0.5, 1.0)


def test_who_finds_all_slots_in_use_waits() -> None:
    played = Played(tokens_per_s={1: 10, 2: 20})
    for adapter in (1, 2, 3):
        played.ask(adapter)
    assert played.run() == (near(0, 0, 1), near(1, 1, 2))


def test_prompts_go_one_after_the_other_and_before_steps() -> None:
    played = Played(prompt_tokens_per_s={1: 100}, tokens_per_s={1: 10, 2: 20})
    played.ask(prompt=100)
    played.ask(prompt=50)
    # Nothing is written until both are read.
    assert played.run() == (near(1, 1.5), near(2.5, 2.5))


def test_more_than_run_at_a_time_wait() -> None:
    played = Played(running=1)
    played.ask()
    played.ask(at=0.1)
    assert played.run() == (near(0, 1), near(1, 2))


def test_a_document_that_was_just_read_need_not_be_read_again() -> None:
    played = Played(prompt_tokens_per_s={1: 1000}, cache_tokens=2500)
    for at, document in ((0, 1), (10, 2), (20, 1), (30, 3), (40, 2), (50, 1)):
        played.ask(at=at, prompt=1100, document=document)
    firsts, _ = played.run()
    # Two fit: the third takes the place of the one that was read longest ago.
    assert firsts == near(1.1, 11.1, 20.1, 31.1, 41.1, 51.1)
    assert played.replica.cached == {1, 2}


def test_without_a_cache_it_is_always_read() -> None:
    played = Played(prompt_tokens_per_s={1: 1000})
    played.ask(prompt=1100, document=1)
    played.ask(at=10, prompt=1100, document=1)
    assert played.run()[0] == near(1.1, 11.1)


def test_the_work_is_what_a_full_batch_would_take() -> None:
    played = Played(tokens_per_s={1: 10, 4: 40}, prompt_tokens_per_s={1: 1000}, context_ms_per_1000_tokens=10)
    played.ask(prompt=95)
    played.run()
    # The prompt, and ten steps: their share of four, and looking back on 100 tokens.
    assert played.replica.work_s == pytest.approx(0.095 + 10 * (1 / 40 + 0.001))
