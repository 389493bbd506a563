"""Reliability as a benchmark: kills, full disks, harmful files, fuzzed requests, access by many users, load.

    make bench-reliability

Real servers on a tiny base model with the scripted engine, so that what is measured is everything around an
engine. The parts, each of some minutes, are kept in --state as they end, and a second call goes on with those
that are missing; --most and --parts bound what one call measures. When all are there it ends with one JSON
line and keeps it in benchmarks/results/reliability.json.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from benchmarks import reliability_access, reliability_inputs, reliability_kills, reliability_load
from benchmarks.parts import Part, measured, parser
from benchmarks.result import keep

SEED = 0
#: What the one line holds, summed over the parts.
_SUMS = (
    *("kills", "lost", "double_published", "orphans", "canary_hits", "bad_inputs", "crashes"),
    *("acl_checks", "acl_leaks", "load_errors"),
)
PARTS: dict[str, Part] = {
    **{f"kills_{part}": partial(reliability_kills.kills, part, seed=SEED) for part in range(6)},
    "disk_full": reliability_kills.disk_full,
    "access": reliability_access.access,
    "timing": partial(reliability_access.timing, seed=SEED),
    **{
        f"files_{kind}": partial(reliability_inputs.files, kind, seed=SEED)
        for kind in ("pdf", "docx", "html")
    },
    "harmful_files": reliability_inputs.harmful_files,
    "requests": reliability_inputs.requests,
    "load": partial(reliability_load.load, seed=SEED),
}


def main() -> int:
    """Measure the parts that are missing; print and keep the figures once all are there."""
    options = parser(__doc__, PARTS)
    options.add_argument("--most", type=int, help="parts to measure in this call")
    options.add_argument(
        "--keep", action="store_true", help="keep what there is, also when parts are missing"
    )
    given = options.parse_args()
    found = measured(PARTS, given, given.most)
    if set(found) == set(PARTS) or given.keep:
        print(keep("reliability", merged(found), seed=SEED))
    return 0


def merged(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of all parts as one: the sums, the p99, and what else each part found."""
    sums = {name: sum(part.get(name, 0) for part in parts.values()) for name in _SUMS}
    rest = {
        name: {key: value for key, value in part.items() if key not in _SUMS} for name, part in parts.items()
    }
    p99_ms = parts.get("load", {}).get("p99_ms")
    return {**sums, "p99_ms": p99_ms, "missing": [name for name in PARTS if name not in parts], "parts": rest}


if __name__ == "__main__":
    sys.exit(main())
