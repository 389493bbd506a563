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
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from transformers import AutoConfig

from benchmarks import compose_exactness, compose_serving
from benchmarks.result import keep, kept
from km_registry.adapter_files import COMPOSITION, CONFIG, PREFIX, WEIGHTS
from km_registry.artifacts import MANIFEST
from km_registry.base_model import resolve
from km_registry.compose import compose
from server.ke_keeper import SHIPPED

_SEED = 0
_RANK = 16
_RANDOM_KMS = 8


def main() -> int:
    """Measure, print and keep the figures."""
    options = _options()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "km-server" / "test-models"
    cache.mkdir(parents=True, exist_ok=True)
    model = resolve("embedded", cache).path
    with tempfile.TemporaryDirectory(prefix="km-compose-") as folder:
        root = Path(folder)
        ke = options.ke or _shipped() or _random(root / "ke", model, seed=1)
        kms = options.km or [_random(root / f"km-{i}", model, seed=2 + i) for i in range(_RANDOM_KMS)]
        composites = [root / f"composite-{i}" for i in range(len(kms))]
        for km, target in zip(kms, composites, strict=True):
            compose(ke, target, km=km)
        questions = _questions(options.questions)[: options.count]
        figures = {
            "ke": ke.name if ke.parent != root else "random",
            "kms": "given" if options.km else "random",
            # Wall-clock figures of a busy machine are not those of an idle one.
            "processes_beside": round(os.getloadavg()[0], 1),
        }
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "composing": lambda: _composing(root, kms[0], ke, repeats=3 if options.smoke else 20),
            "exactness": lambda: compose_exactness.logits(model, kms, ke, composites, questions[:16]),
            "serving": lambda: asyncio.run(
                compose_serving.measure(
                    model, kms, composites, questions, rounds=options.rounds, tokens=options.tokens
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
    """The questions of a file, or those of the sample and of the tuning document, over and over."""
    here = Path(__file__).parent / "data" / "tuning.jsonl"
    sources = [given] if given else [Path(str(files("server") / "samples" / "demo.jsonl")), here]
    lines = [line for path in sources for line in path.read_text().splitlines() if line.strip()]
    questions = [json.loads(line)["question"] for line in lines]
    return questions if given else questions * 10


def _random(directory: Path, model: Path, *, seed: int) -> Path:
    """An adapter of random weights in float16 for every linear layer, with a KE's scalars."""
    config = AutoConfig.from_pretrained(model)
    hidden, inner = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * config.head_dim
    shapes = {
        **{f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "o_proj")},
        **{f"self_attn.{name}": (kv, hidden) for name in ("k_proj", "v_proj")},
        **{f"mlp.{name}": (inner, hidden) for name in ("gate_proj", "up_proj")},
        "mlp.down_proj": (hidden, inner),
    }
    draw = np.random.default_rng(seed)
    tensors, scalars = {}, {}
    for number in range(config.num_hidden_layers):
        for module, (out, into) in shapes.items():
            layer = f"model.layers.{number}.{module}"
            a = draw.normal(size=(_RANK, into)) / into**0.5
            b = draw.normal(size=(out, _RANK)) * 0.05
            tensors[f"{PREFIX}{layer}.lora_A.weight"] = a.astype(np.float16)
            tensors[f"{PREFIX}{layer}.lora_B.weight"] = b.astype(np.float16)
            for name in ("w_M", "w_E"):
                scalars[f"{layer}.{name}"] = draw.uniform(0.4, 1.0, size=1).astype(np.float32)
    directory.mkdir()
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    save_file(scalars, directory / COMPOSITION)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": _RANK,
        "lora_alpha": _RANK,
        "target_modules": sorted({module.split(".")[1] for module in shapes}),
    }
    (directory / CONFIG).write_text(json.dumps(described))
    return directory


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # All that needs an orderly end has had it; what vLLM does while Python is being taken down may hang.
    os._exit(code)
