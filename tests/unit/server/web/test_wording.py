"""Sizes, durations and states as a person reads them."""

from __future__ import annotations

import pytest

from km_registry.types import JobState, Stage
from server.web import wording


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (3172, "3.2 kB"),
        (152_000, "152 kB"),
        (20_000_000, "20 MB"),
        (7.4e12, "7400 GB"),
    ],
)
def test_sizes(count: int, said: str) -> None:
    assert wording.size(count) == said


@pytest.mark.parametrize(
    ("count", "said"), [(0.4, "0 s"), (59.4, "59 s"), (95, "1 min 35 s"), (7300, "2 h 1 min")]
)
def test_durations(count: float, said: str) -> None:
    assert wording.seconds(count) == said


def test_how_long_ago() -> None:
    assert [wording.ago(count) for count in (-0.4, 0.4, 12.2)] == ["just now", "just now", "12 s ago"]


def test_milliseconds_and_shares() -> None:
    assert (wording.milliseconds(412.5), wording.milliseconds(1240)) == ("412 ms", "1.24 s")
    assert (wording.percent(0.714), wording.percent(None)) == ("71 %", "–")


def test_every_mode_and_state_has_a_name() -> None:
    assert set(wording.MODES) == set(wording.Mode)
    assert {wording.state_name(state) for state in JobState} >= {"Waiting", "KM ready", "Failed", "Cancelled"}
    assert wording.state_name(JobState.RUNNING, Stage.TEACHER) == "Teacher"
