"""`km engine`: what each command does, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from server.config import ServerSettings
from server.engine.base import EngineNotReachedError, EngineUnavailableError
from server.engine.ray_rollout import Found
from tests.unit.server.test_cli import km

BEFORE = Found("RUNNING", {"running": 2}, ["KM_MAX_LORAS is 4 there, 8 here"])
DURING = Found("DEPLOYING", {"starting": 1, "running": 2}, [], "There is no room for one more.")


class Ray:
    """What the commands are given in its place."""

    def __init__(self) -> None:
        self.there: Found | None = BEFORE
        self.steps: list[Found | Exception] = [DURING, Found("RUNNING", {"running": 2}, [])]
        self.surge: bool | None = None
        self.address: str | None = None

    @contextmanager
    def joined(self, settings: ServerSettings, *, surge: bool = True) -> Iterator[tuple[Any, Any]]:
        self.address, self.surge = settings.ray_address, surge
        if settings.ray_address == "nowhere":
            raise EngineNotReachedError("Ray is not reached")
        yield None, None

    def roll_out(self, *_: object) -> Iterator[Found]:
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            yield step


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    ray = Ray()
    monkeypatch.setattr("server.ray_composition.joined", ray.joined)
    monkeypatch.setattr("server.engine.ray_rollout.found", lambda *_: ray.there)
    monkeypatch.setattr("server.engine.ray_rollout.roll_out", ray.roll_out)
    return ray


def test_show(ray: Ray) -> None:
    done = km("engine", "show", "--ray-address", "head:6379")
    assert done.output.splitlines() == ["running: 2 running", "KM_MAX_LORAS is 4 there, 8 here"]
    assert ray.address == "head:6379"
    assert json.loads(km("engine", "show", "--json").output)["differing"] == BEFORE.differing


def test_show_of_nothing(ray: Ray) -> None:
    ray.there = None
    done = km("engine", "show")
    assert (done.exit_code, "No engine runs there" in done.output) == (1, True)


def test_roll_out(ray: Ray) -> None:
    done = km("engine", "roll-out")
    assert done.output.splitlines() == [
        "deploying: 2 running, 1 starting",
        "  There is no room for one more.",
        "running: 2 running",
    ]
    assert (done.exit_code, ray.surge) == (0, True)
    assert json.loads(km("engine", "roll-out", "--stop-first", "--json").output) == {
        "state": "RUNNING",
        "replicas": {"running": 2},
    }
    assert ray.surge is False


def test_one_that_fails(ray: Ray) -> None:
    ray.steps = [DURING, EngineUnavailableError("the new replicas do not start")]
    done = km("engine", "roll-out")
    assert (done.exit_code, done.stderr) == (1, "km: the new replicas do not start\n")


def test_no_ray_there() -> None:
    done = km("engine", "roll-out", "--ray-address", "nowhere")
    assert (done.exit_code, done.stderr) == (2, "km: Ray is not reached\n")
