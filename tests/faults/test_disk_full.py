"""The disk is full at every single write of every operation."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.disk import run_on_small_disk


def test_a_clear_failure_nothing_half_written_and_it_works_again(tmp_path: Path) -> None:
    said = run_on_small_disk("tests.faults.disk_full", tmp_path, timeout_s=500)
    found = [json.loads(line) for line in said.splitlines()]
    assert {one["operation"]: one["problems"] for one in found} == {
        name: [] for name in ("upload", "change", "publish", "compose", "delete", "user")
    }
    assert all(one["writes"] > 3 and one["failures"] for one in found), found
