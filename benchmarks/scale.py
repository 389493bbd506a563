"""Beyond one machine: routing among replicas on Ray Serve, failing over, the simulator against both, records.

    make bench-scale

The parts, each of some minutes, are kept in --state as they end, and a second call goes on with those that
are missing. When all are there it ends with one JSON line and keeps it in benchmarks/results/scale.json.
"""

from __future__ import annotations

from functools import partial

from benchmarks import scale_failover, scale_records, scale_routing
from benchmarks.parts import Part, measured, parser
from benchmarks.result import keep

_SEED = 0
PARTS: dict[str, Part] = {
    "routing": partial(scale_routing.measure, requests=200, seed=_SEED),
    "failover": scale_failover.measure,
    "records": partial(scale_records.measure, tries=2000, seed=_SEED),
}


def main() -> int:
    """Measure the parts that are missing; print and keep the figures once all are there."""
    found = measured(PARTS, parser(__doc__, PARTS).parse_args())
    if set(found) == set(PARTS):
        print(keep("scale", found, seed=_SEED))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
