"""Serving as a benchmark: many KMs on one engine, against none, against vLLM's own operator, and over HTTP.

    make bench-serve
    python -m benchmarks.serve --part throughput --part http
    python -m benchmarks.serve --part mixed --seconds 300

vLLM compiles a model without LoRA, so ours is compiled too (KM_COMPILE), unless --plain says otherwise.
KMs are random weights of rank 16, of a size that changes answers. Ratios are taken in one run, what is
compared taking turns. Parts: throughput (LoRA against none and against the stock operator; 64 KMs by Zipf's
law on 8 slots), latency (first token from disk and from the slot; memory of resident KMs, its growth), http
(gateway against engine, publishing, deleting), icl (answers from a KM against the document in the prompt),
and mixed, which is not among the default ones. Ends with one JSON line and keeps it, by parts, in
benchmarks/results/serve.json; `--smoke` does a little of each and keeps nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer

from benchmarks import serve_http, serve_icl, serve_latency, serve_mixed, serve_throughput
from benchmarks.adapters import random_km
from benchmarks.embedded import embedded_model, questions
from benchmarks.result import keep, kept
from benchmarks.serve_engines import PLACES, Prompt, ours, raw
from benchmarks.serve_server import served
from km_registry.base_model import BaseModel
from km_registry.prompts import answer_messages, encode
from km_registry.types import Document
from server.engine.vllm_engine import VllmEngine
from server.tokenizer import Tokenizer

_SEED = 0
_DEFAULT = ("throughput", "latency", "http", "icl")
_PARTS = (*_DEFAULT, "mixed")


def main() -> int:
    """Measure, print and keep the figures."""
    options = _options()
    model = embedded_model()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="km-serve-") as folder:
        root = Path(folder)
        kms = [random_km(root / f"km-{i}", model, seed=_SEED + i) for i in range(options.kms)]
        figures = asyncio.run(_measured(options, model, kms, root))
    figures["processes_beside"] = round(os.getloadavg()[0], 1)
    figures["cores"] = len(os.sched_getaffinity(0))
    figures["seconds"] = round(time.perf_counter() - began, 1)
    print(json.dumps(figures) if options.smoke else keep("serve", {**kept("serve"), **figures}, seed=_SEED))
    return 0


async def _measured(
    options: argparse.Namespace, model: BaseModel, kms: Sequence[Path], root: Path
) -> dict[str, Any]:
    """All parts, on one engine of ours; those that it is compared with are there only for that."""
    parts = options.part or _DEFAULT
    figures: dict[str, Any] = {}
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    asked = questions()
    prompts = [tuple(encode(tokenizer, answer_messages(question))) for question in asked]
    async with AsyncExitStack() as others, AsyncExitStack() as stack:
        if "throughput" in parts:
            # Before ours, which changes what later engines of this process are made of.
            without = await others.enter_async_context(raw(model, lora=False))
            stock = await others.enter_async_context(raw(model, lora=True))
        began = time.perf_counter()
        engine = await stack.enter_async_context(ours(model, root / "data", compiled=not options.plain))
        figures |= {"compiled": not options.plain, "start_s": round(time.perf_counter() - began, 1)}
        if "latency" in parts:
            figures |= _told(
                await serve_latency.measure(
                    engine, kms[:40], prompts, repeats=options.repeats, cycles=options.cycles
                )
            )
        if "throughput" in parts:
            figures |= _told(
                await serve_throughput.measure(
                    without,
                    stock,
                    engine,
                    kms,
                    prompts,
                    rounds=options.rounds,
                    tokens=options.tokens,
                    zipf=options.zipf,
                )
            )
            await others.aclose()
        if "icl" in parts:
            figures |= _told(
                await serve_icl.measure(
                    engine, tokenizer, kms, asked, document_tokens=options.document, answers=options.answers
                )
            )
        if "http" in parts or "mixed" in parts:
            figures |= await _over_http(options, engine, tokenizer, model, prompts, root / "data")
    return figures


async def _over_http(
    options: argparse.Namespace,
    engine: VllmEngine,
    tokenizer: Tokenizer,
    model: BaseModel,
    prompts: Sequence[Prompt],
    data_dir: Path,
) -> dict[str, Any]:
    def write_km(directory: Path, document: Document) -> object:
        return random_km(directory, model, seed=int(document.sha256[:6], 16), document=document)

    parts = options.part or _DEFAULT
    figures: dict[str, Any] = {}
    async with served(engine, tokenizer, model, data_dir, write_km) as server:
        if "http" in parts:
            figures |= _told(
                await serve_http.measure(
                    server, prompts, rounds=options.rounds, repeats=options.repeats, tokens=options.tokens
                )
            )
        if "mixed" in parts:
            processes = [psutil.Process(), *engine._processes]
            figures |= _told(
                await serve_mixed.measure(
                    server, seconds=options.seconds, every_s=2.0, rss=partial(_rss, processes)
                )
            )
    return figures


def _told(figures: dict[str, Any]) -> dict[str, Any]:
    """The same, said at once: a later part may be cut short."""
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


def _rss(processes: Sequence[psutil.Process]) -> int:
    return sum(process.memory_info().rss for process in processes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.serve")
    parser.add_argument("--part", choices=_PARTS, action="append", help="only this; may be given often")
    parser.add_argument("--kms", type=int, default=PLACES, help="distinct KMs")
    parser.add_argument("--rounds", type=int, default=4, help="times that each kind is served in turn")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of every answer")
    parser.add_argument("--zipf", type=int, default=160, help="requests by Zipf's law")
    parser.add_argument("--repeats", type=int, default=15, help="times that a latency is measured")
    parser.add_argument("--cycles", type=int, default=1000, help="loads and evictions")
    parser.add_argument("--document", type=int, default=5000, help="tokens of the document in the prompt")
    parser.add_argument("--answers", type=int, default=3, help="answers from it without the prefix cache")
    parser.add_argument("--seconds", type=float, default=300, help="of mixed load")
    parser.add_argument("--plain", action="store_true", help="without KM_COMPILE")
    parser.add_argument("--smoke", action="store_true", help="a little of everything; nothing is kept")
    options = parser.parse_args()
    if options.smoke:
        little = {"kms": 12, "rounds": 1, "tokens": 8, "zipf": 24, "repeats": 2, "cycles": 20}
        vars(options).update(little | {"document": 300, "answers": 1, "seconds": 8.0})
    return options


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # All that needs an orderly end has had it; what vLLM does while Python is being taken down may hang.
    os._exit(code)
