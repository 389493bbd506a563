"""Benchmarks of several parts, each of some minutes: what one call measured, a later one does not again."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Part = Callable[[], dict[str, Any]]
Figures = dict[str, dict[str, Any]]


def parser(description: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    """The options that such benchmarks have: --state and --parts."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    found.add_argument("--state", type=Path, help="directory that keeps the figures of each part")
    found.add_argument("--parts", default=",".join(parts), help="only of these, by name")
    return found


def measured(parts: Mapping[str, Part], options: argparse.Namespace, most: int | None = None) -> Figures:
    """The figures of the parts that are kept, and of those that were asked for and missing, `most` at most.

    Each with its seconds and the machine's load just before.
    """
    state: Path | None = options.state
    found = {name: figures for name in parts if (figures := _kept(state, name)) is not None}
    for name in [name for name in options.parts.split(",") if name not in found][:most]:
        began = time.monotonic()
        load = round(os.getloadavg()[0], 1)
        figures = parts[name]()
        figures |= {"load_before": load, "part_seconds": round(time.monotonic() - began, 1)}
        print(json.dumps({"part": name, **figures}), flush=True)
        if state is not None:
            state.mkdir(parents=True, exist_ok=True)
            (state / f"{name}.json").write_text(json.dumps(figures))
        found[name] = figures
    return found


def _kept(state: Path | None, name: str) -> dict[str, Any] | None:
    if state is None or not (file := state / f"{name}.json").exists():
        return None
    figures: dict[str, Any] = json.loads(file.read_text())
    return figures
