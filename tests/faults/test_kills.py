"""At least 60 kills: every process in every phase, thrice, each at another moment."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.faults.runs import ROUND, FaultRuns
from tests.faults.stack import running

#: A part of them, as `KM_FAULT_RUNS=24:48`.
FIRST, _, END = os.environ.get("KM_FAULT_RUNS", f"0:{3 * ROUND}").partition(":")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultRuns]:
    with running(tmp_path_factory.mktemp("faults")) as stack:
        yield FaultRuns(stack)


@pytest.mark.parametrize("number", range(int(FIRST), int(END)))
def test_nothing_is_lost_doubled_left_or_remembered(runs: FaultRuns, number: int) -> None:
    runs.run(number)
    assert runs.tally.problems == []
