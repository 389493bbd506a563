"""Users share, ask and delete at random, against a model of who may do what."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.access_machine import machine_on

#: Fixed examples, a few seconds of them; `make bench-reliability` runs many more.
BOUNDED = settings(
    max_examples=6,
    stateful_step_count=25,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_nobody_gets_what_the_model_denies_or_is_denied_what_it_allows(tmp_path: Path) -> None:
    with machine_on(tmp_path / "data") as machine:
        run_state_machine_as_test(machine, settings=BOUNDED)
        checks = machine.site.checks
    assert len(checks) >= 8, checks
    assert checks.total() > 150
