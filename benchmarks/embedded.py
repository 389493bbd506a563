"""What benchmarks of serving ask, and whom: the embedded model, and the questions that come with the code."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path

from km_registry.base_model import BaseModel, resolve


def embedded_model() -> BaseModel:
    """The embedded model, converted once for all tests and benchmarks."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "km-server" / "test-models"
    cache.mkdir(parents=True, exist_ok=True)
    return resolve("embedded", cache)


def questions_in(*paths: Path) -> list[str]:
    """The questions of JSONL files."""
    lines = [line for path in paths for line in path.read_text().splitlines() if line.strip()]
    return [json.loads(line)["question"] for line in lines]


def questions() -> list[str]:
    """Those of the sample and of the tuning document."""
    tuning = Path(__file__).parent / "data" / "tuning.jsonl"
    return questions_in(Path(str(files("server") / "samples" / "demo.jsonl")), tuning)
