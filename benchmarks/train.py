"""Training against the straightforward reference, step for step in alternation.

    make bench-train                                                  all of it; takes an hour and more
    python -m benchmarks.train --setting 600 --part speed --steps 40  a piece of it

Parts: `speed` (both trainings, same batches, same first weights), `recovered` (ours alone, until `recovered`
is 0.8 and to the end), `warm` (a new version, from the KM of the one before and from scratch), `group`
(four documents in one group against one; --steps bounds it). Each part is merged into
benchmarks/results/train.json; one JSON line per setting at the end. A `speed` part with --seconds stops in
time and goes on where it was when called again with the same --steps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.result import keep, kept
from benchmarks.train_group import measure_group
from benchmarks.train_recovered import measure_recovered
from benchmarks.train_speed import measure_speed
from benchmarks.train_warm import measure_warm
from benchmarks.training import SETTINGS, Bench

PARTS: dict[str, Callable[[Bench, str, argparse.Namespace], dict[str, Any]]] = {
    "speed": lambda bench, setting, given: measure_speed(bench, setting, given.steps, given.seconds),
    "recovered": lambda bench, setting, given: measure_recovered(bench, setting, given.recovered_steps),
    "warm": lambda bench, setting, given: measure_warm(bench, setting, given.steps),
    "group": lambda bench, setting, given: measure_group(bench, setting, given.steps),
}


def main() -> int:
    """Measure what was asked for, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="default: every setting")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: every part")
    parser.add_argument("--steps", type=int, help="steps of `speed` and `group` (default: 40)", default=40)
    parser.add_argument(
        "--recovered-steps", type=int, help="steps of `recovered` (default: as many as the recipe takes)"
    )
    parser.add_argument("--seconds", type=float, help="let `speed` stop after so many seconds")
    given = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    bench = Bench()
    settings = given.setting or list(SETTINGS)
    for setting in settings:
        for part in given.part or PARTS:
            # Four long documents in a group say nothing that four short ones do not.
            if part in ("group", "warm") and setting != "600" and not given.part:
                continue
            print(f"{setting}: {part}", file=sys.stderr)
            _merge(setting, PARTS[part](bench, setting, given))
    for setting in settings:
        print(json.dumps(_kept().get(setting, {})))
    return 0


def _kept() -> dict[str, Any]:
    settings: dict[str, Any] = kept("train").get("settings", {})
    return settings


def _merge(setting: str, figures: dict[str, Any]) -> None:
    settings = _kept()
    settings[setting] = settings.get(setting, {}) | figures
    keep("train", {"settings": settings}, seed=SETTINGS[setting][1].seed)


if __name__ == "__main__":
    sys.exit(main())
