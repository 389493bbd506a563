"""Composition as a benchmark: what a composite costs to make and to serve, and how exact it is.

    make bench-compose
    python -m benchmarks.compose --ke server/shipped_kes/NAME --km KM_DIR --km KM_DIR --questions FILE

Times composing for the embedded model; compares the composite's logits with both LoRAs applied apart, in
float32; serves base, KM and composite in turn on the real engine, eight at a time; and compares what the
engine writes with what transformers and PEFT write offline. KMs are random unless given (of a size that
changes answers); the KE is the shipped one if there is one, else random. `--smoke` does a little of each.
Ends with one JSON line and keeps it in benchmarks/results/compose.json, but for `--smoke`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import compose_exactness, compose_serving
from benchmarks.adapters import random_adapter
from benchmarks.embedded import embedded_model, questions, questions_in
from benchmarks.result import keep, kept
from km_registry.adapter_files import WEIGHTS
from km_registry.artifacts import MANIFEST
from km_registry.compose import compose
from server.ke_keeper import SHIPPED

_SEED = 0
_RANDOM_KMS = 8


def main() -> int:
    """Measure, print and keep the figures."""
    options = _options()
    model = embedded_model().path
    with tempfile.TemporaryDirectory(prefix="km-compose-") as folder:
        root = Path(folder)
        ke = options.ke or _shipped() or random_adapter(root / "ke", model, seed=1)
        kms = options.km or [random_adapter(root / f"km-{i}", model, seed=2 + i) for i in range(_RANDOM_KMS)]
        composites = [root / f"composite-{i}" for i in range(len(kms))]
        for km, target in zip(kms, composites, strict=True):
            compose(ke, target, km=km)
        asked = _questions(options.questions)[: options.count]
        figures = {
            "ke": ke.name if ke.parent != root else "random",
            "kms": "given" if options.km else "random",
            # Wall-clock figures of a busy machine are not those of an idle one.
            "processes_beside": round(os.getloadavg()[0], 1),
        }
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "composing": lambda: _composing(root, kms[0], ke, repeats=3 if options.smoke else 20),
            "exactness": lambda: compose_exactness.logits(model, kms, ke, composites, asked[:16]),
            "serving": lambda: asyncio.run(
                compose_serving.measure(
                    model, kms, composites, asked, rounds=options.rounds, tokens=options.tokens
                )
            ),
        }
        for part in options.part or parts:
            print(f"{part} …", file=sys.stderr)
            figures |= parts[part]()
    print(
        json.dumps(figures) if options.smoke else keep("compose", {**kept("compose"), **figures}, seed=_SEED)
    )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.compose")
    parser.add_argument("--ke", type=Path, help="directory of a KE")
    parser.add_argument("--km", type=Path, action="append", help="directory of a KM; may be given often")
    parser.add_argument("--questions", type=Path, help='JSONL with "question" in every line')
    parser.add_argument("--count", type=int, default=200, help="questions to compare answers to")
    parser.add_argument("--rounds", type=int, default=5, help="times that each kind is served in turn")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of every answer")
    parser.add_argument(
        "--part",
        choices=("composing", "exactness", "serving"),
        action="append",
        help="default: all; what is left out keeps its last figures",
    )
    parser.add_argument("--smoke", action="store_true", help="a little of everything; nothing is kept")
    options = parser.parse_args()
    if options.smoke:
        options.count, options.rounds, options.tokens = 4, 1, 8
    return options


def _composing(root: Path, km: Path, ke: Path, *, repeats: int) -> dict[str, Any]:
    """Milliseconds to compose and write a composite, and the bytes of all three."""
    times, cpu_times = [], []
    for _ in range(repeats):
        target = root / "timed"
        shutil.rmtree(target, ignore_errors=True)
        began, cpu_began = time.perf_counter(), time.process_time()
        size = compose(ke, target, km=km)
        times.append((time.perf_counter() - began) * 1000)
        cpu_times.append((time.process_time() - cpu_began) * 1000)
    return {
        "compose_ms_p50": round(statistics.median(times), 1),
        "compose_ms_max": round(max(times), 1),
        "compose_cpu_ms_p50": round(statistics.median(cpu_times), 1),
        "km_bytes": (km / WEIGHTS).stat().st_size,
        "ke_bytes": (ke / WEIGHTS).stat().st_size,
        "composite_bytes": size,
    }


def _shipped() -> Path | None:
    found = sorted(SHIPPED.glob(f"*/{MANIFEST}"))
    return found[0].parent if found else None


def _questions(given: Path | None) -> list[str]:
    """The questions of a file, or those that come with the code, over and over."""
    return questions_in(given) if given else questions() * 10


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # All that needs an orderly end has had it; what vLLM does while Python is being taken down may hang.
    os._exit(code)
