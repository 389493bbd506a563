"""The lines of a starting server."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from server import stages
from server.stages import Stages


def plain() -> tuple[Stages, io.StringIO]:
    out = io.StringIO()
    return Stages(Console(file=out, width=40)), out


def test_one_line_for_each_stage() -> None:
    shown, out = plain()
    with shown.shown(), shown.stage("Redis") as redis:
        redis.update("waiting")
        with shown.stage("database"):
            pass
        redis.detail = "private, " + "x" * 60

    assert out.getvalue().splitlines() == [
        "✓ database       0.0 s",
        f"✓ Redis          private, {'x' * 60}  0.0 s",
    ]


def test_a_failed_stage_prints_none() -> None:
    shown, out = plain()
    with pytest.raises(KeyError), shown.stage("Redis"):
        raise KeyError

    assert out.getvalue() == ""


def test_a_long_stage_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "PLAIN_EVERY_S", 0.0)
    shown, out = plain()
    with shown.stage("base model") as stage:
        stage.update("converting (3 s)")

    assert out.getvalue().splitlines()[0] == "  base model: converting (3 s)"


def test_on_a_terminal() -> None:
    out = io.StringIO()
    shown = Stages(Console(file=out, force_terminal=True, width=80))
    with shown.shown(), shown.stage("engine") as stage:
        stage.update("loading [bold]")

    assert "✓ engine" in out.getvalue()
    assert shown.live is None
