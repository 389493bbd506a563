"""Beyond one machine: routing among replicas on Ray Serve, failing over, the simulator against both, records.

    make bench-scale

The parts, each of some minutes, are kept in --state as they end, and a second call goes on with those that
are missing. When all are there it ends with one JSON line and keeps it in benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import scale_failover, scale_records, scale_routing
from benchmarks.result import keep

_SEED = 0
PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "routing": partial(scale_routing.measure, requests=200, seed=_SEED),
    "failover": scale_failover.measure,
    "records": partial(scale_records.measure, tries=2000, seed=_SEED),
}


def main() -> int:
    """Measure the parts that are missing; print and keep the figures once all are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--state", type=Path, help="directory that keeps the figures of each part")
    parser.add_argument("--parts", default=",".join(PARTS), help="only of these, by name")
    given = parser.parse_args()
    found = _kept(given.state)
    for name in [name for name in given.parts.split(",") if name not in found]:
        began = time.monotonic()
        load = round(os.getloadavg()[0], 1)
        found[name] = PARTS[name]() | {"load_before": load, "seconds": round(time.monotonic() - began, 1)}
        print(json.dumps({"part": name, **found[name]}), flush=True)
        if given.state is not None:
            given.state.mkdir(parents=True, exist_ok=True)
            (given.state / f"{name}.json").write_text(json.dumps(found[name]))
    if set(found) == set(PARTS):
        print(keep("scale", found, seed=_SEED))
    return 0


def _kept(state: Path | None) -> dict[str, dict[str, Any]]:
    if state is None:
        return {}
    return {path.stem: json.loads(path.read_text()) for path in state.glob("*.json") if path.stem in PARTS}


if __name__ == "__main__":
    raise SystemExit(main())
