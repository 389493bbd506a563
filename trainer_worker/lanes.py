"""Documents side by side on the cores of a CPU: each lane takes some of a step's documents forward and back.

A training step is some thousand small operations. Spread over the cores one by one, each of them waits for
the slowest core. Documents have nothing to wait for each other for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from trainer_worker.fast_model import fast_model

T = TypeVar("T")
R = TypeVar("R")


class Lanes:
    """Lanes for a model. There is one, which is the caller itself, where documents cannot go side by side: on
    a GPU, on one core, and with models whose modules keep what acts on them (see `lora.routed`)."""

    def __init__(self, model: Any) -> None:
        self._threads = torch.get_num_threads()
        apart = model.device.type == "cpu" and fast_model(model) is not None
        self.count = self._threads if apart else 1

    def map(
        self, function: Callable[[list[T]], list[R]], items: Sequence[T], size: Callable[[T], int]
    ) -> list[R]:
        """What `function` gives for each of the items, in their order; it is called once in every lane that
        there is work for, with items of about the same size in all.

        Raises what a call raises, once all have ended.
        """
        shares = shared_out([size(item) for item in items], self.count)
        if len(shares) < 2:
            return function(list(items))
        with (
            self._narrow(len(shares)) as threads,
            ThreadPoolExecutor(len(shares), initializer=torch.set_num_threads, initargs=(threads,)) as pool,
        ):
            done = [pool.submit(function, [items[index] for index in share]) for share in shares]
        results: dict[int, R] = {}
        for share, one in zip(shares, done, strict=True):
            results |= zip(share, one.result(), strict=True)
        return [results[index] for index in range(len(items))]

    @contextmanager
    def _narrow(self, lanes: int) -> Iterator[int]:
        """Threads for each lane. What libraries hold for the whole process is put back behind it."""
        threads = max(1, self._threads // lanes)
        torch.set_num_threads(threads)
        try:
            yield threads
        finally:
            torch.set_num_threads(self._threads)


def shared_out(sizes: Sequence[int], lanes: int) -> list[list[int]]:
    """Indices of things of these sizes, in at most that many lanes of about the same size: the largest first,
    each into the lane that has least."""
    shares: list[list[int]] = [[] for _ in range(min(lanes, len(sizes)))]
    loads = [0] * len(shares)
    for index in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += sizes[index]
    return [sorted(share) for share in shares]
