"""The demo as a benchmark: quality, seconds and memory of the main job on the sample document.

    make bench

Ends with one JSON line and keeps it in benchmarks/results/demo.json.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console

from benchmarks.result import keep
from server.demo import DemoError, run
from server.sample import SampleError


def main() -> int:
    """Run the demo with the default recipe and keep its figures."""
    began = time.monotonic()
    try:
        figures = run(Console(stderr=True), {})
    except (DemoError, SampleError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    figures["total_seconds"] = round(time.monotonic() - began, 1)
    nll = figures["nll_base"], figures["nll_icl"], figures["nll_km"]
    figures["nll_distance_closed"] = round((nll[0] - nll[2]) / (nll[0] - nll[1]), 3)
    print(keep("demo", figures, seed=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
