"""Documents side by side: shared out evenly, in order, and with the numbers of one lane."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.unit.trainer_worker.test_train import RECIPE
from trainer_worker import lanes
from trainer_worker.examples import Example
from trainer_worker.lanes import Lanes, shared_out
from trainer_worker.lora import open_slot
from trainer_worker.pairs import Pair
from trainer_worker.train import Run, train


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([5, 1, 4], 2, [[0], [1, 2]]),
        ([1, 1, 1, 1], 2, [[0, 2], [1, 3]]),
        ([3, 9], 4, [[1], [0]]),
        ([7], 2, [[0]]),
        ([2, 2, 2], 1, [[0, 1, 2]]),
    ],
)
def test_the_largest_first_into_the_emptiest_lane(
    sizes: list[int], count: int, expected: list[list[int]]
) -> None:
    assert shared_out(sizes, count) == expected


def test_results_come_in_the_items_order_from_several_threads(
    make_student: Callable[..., Any], two_threads: None
) -> None:
    together = threading.Barrier(2, timeout=30)
    calls: list[list[int]] = []

    def doubled(items: list[int]) -> list[int]:
        together.wait()  # only two lanes at the same time get past it
        assert torch.get_num_threads() == 1
        calls.append(items)
        return [2 * item for item in items]

    assert Lanes(make_student()).map(doubled, [5, 1, 4], size=lambda item: item) == [10, 2, 8]

    assert sorted(calls) == [[1, 4], [5]]
    assert torch.get_num_threads() == 2


def test_what_goes_wrong_in_a_lane_is_raised_and_the_threads_are_put_back(
    make_student: Callable[..., Any], two_threads: None
) -> None:
    def refusing(items: list[int]) -> list[int]:
        raise ValueError(f"not {items}")

    with pytest.raises(ValueError, match="not"):
        Lanes(make_student()).map(refusing, [1, 2], size=lambda item: item)

    assert torch.get_num_threads() == 2


def test_models_whose_modules_hold_what_acts_have_one_lane(
    make_student: Callable[..., Any], two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_student()
    assert Lanes(model).count == 2

    monkeypatch.setattr(lanes, "fast_model", lambda _model: None)

    assert Lanes(model).count == 1


def test_a_group_learns_the_same_side_by_side(
    make_student: Callable[..., Any],
    make_examples: Callable[..., list[Example]],
    make_pairs: Callable[..., list[Pair]],
    two_threads: None,
) -> None:
    model = make_student()
    documents = [make_pairs(model, 0, examples=make_examples(6, seed=seed)) for seed in (3, 5, 8)]

    def trained() -> list[torch.Tensor]:
        slots = [
            open_slot(model, rank=4, alpha=8.0, dropout=0.1, seed=number) for number in range(len(documents))
        ]
        runs = [Run(slot, pairs, [], RECIPE, 5) for slot, pairs in zip(slots, documents, strict=True)]
        assert all(ended.error is None for ended in train(model, runs))
        return [slot.flat.detach().clone() for slot in slots]

    side_by_side = trained()
    again = trained()
    torch.set_num_threads(1)
    one_lane = trained()

    for first, second, alone in zip(side_by_side, again, one_lane, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, alone, rtol=1e-3, atol=1e-5)
