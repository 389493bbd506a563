"""Reading event streams."""

from __future__ import annotations

from server.client import ServerEvent, read_events


def test_events_with_comments_several_data_lines_and_defaults() -> None:
    lines = (
        ": ping",
        "",
        "event: progress",
        "id: 3",
        'data: {"step":',
        "data:  3}",
        "",
        'data: {"a": 1}',
        "",
    )
    assert list(read_events(iter(lines))) == [
        ServerEvent("progress", {"step": 3}),
        ServerEvent("message", {"a": 1}),
    ]


def test_an_event_that_is_cut_off_is_none() -> None:
    assert list(read_events(iter(["event: failed", "data: {}"]))) == []
