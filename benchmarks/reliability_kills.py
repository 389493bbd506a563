"""Reliability: kill -9 of every process in every phase, and a disk that is full at every write."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.faults.disk import run_on_small_disk
from tests.faults.runs import ROUND, FaultRuns
from tests.faults.stack import running


def kills(part: int, *, seed: int) -> dict[str, Any]:
    """Half a round of fault runs: every victim in half of the phases, each at a moment of its own."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as stack:
        runs = FaultRuns(stack, seed=seed)
        for number in range(part * ROUND // 2, (part + 1) * ROUND // 2):
            runs.run(number)
            print(
                f"kill {number}: {dict(runs.tally.kills)} {runs.tally.problems}", file=sys.stderr, flush=True
            )
        tally = runs.tally
    return {
        "kills": tally.kills.total(),
        "lost": tally.lost,
        "double_published": tally.double_published,
        "orphans": tally.orphans,
        "canary_hits": tally.canary_hits,
        "doctor_findings": tally.findings,
        "killed": dict(tally.kills),
        "phases": dict(tally.phases),
        "problems": tally.problems,
    }


def disk_full() -> dict[str, Any]:
    """Every operation with the disk full at each of its writes."""
    with tempfile.TemporaryDirectory() as folder:
        said = run_on_small_disk("tests.faults.disk_full", Path(folder), timeout_s=900)
    found = [json.loads(line) for line in said.splitlines()]
    return {
        "writes": {one["operation"]: one["writes"] for one in found},
        "failures": {one["operation"]: one["failures"] for one in found},
        "half_written": sum(len(one["problems"]) for one in found),
        "problems": [problem for one in found for problem in one["problems"]],
    }
