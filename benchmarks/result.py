"""Keeps a benchmark's last result: its figures with versions, seed and machine."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.surroundings import machine, versions

RESULTS = Path(__file__).parent / "results"


def kept(name: str) -> dict[str, Any]:
    """What the benchmark's last result says; nothing where there is none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def keep(name: str, figures: dict[str, Any], *, seed: int) -> str:
    """Write benchmarks/results/<name>.json; returns the one JSON line that the benchmark ends with."""
    result = {
        "benchmark": name,
        **figures,
        "seed": seed,
        "versions": versions(),
        "machine": machine(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return json.dumps(result)
