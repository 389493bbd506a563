"""Reliability: damaged and harmful files, and fuzzed requests."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from server.intake.limits import IntakeLimits
from server.intake.media import Media
from tests.api_fuzz import ApiFuzz
from tests.bad_files import HARMFUL, mutated, whole
from tests.inprocess import Served, served
from tests.intake_mill import Mill, Outcome

_FILES = 500
#: Of the damaged files, every so many-th is also uploaded over HTTP, and read by the real child.
_UPLOADED_EVERY = 25
_LIMITS = IntakeLimits(
    file_bytes=120_000_000,
    text_bytes=2_000_000,
    pages=2000,
    unpacked_bytes=50_000_000,
    memory_bytes=768 * 2**20,
    seconds=10,
)


def files(kind: str, *, seed: int) -> dict[str, Any]:
    """500 damaged files of one kind: how many there were, and how many crashed something or took too much."""
    outcomes: Counter[str] = Counter()
    peak = cpu = 0.0
    crashes = 0
    with Mill(_LIMITS) as mill:
        for data in mutated(kind, _FILES, seed=seed):
            outcome = mill.read(data, Media(kind))
            peak, cpu = max(peak, outcome.peak_bytes), max(cpu, outcome.cpu_seconds)
            outcomes[_name(outcome)] += 1
            crashes += _exceeds(outcome)
    uploads = [data for at, data in enumerate(mutated(kind, _FILES, seed=seed)) if at % _UPLOADED_EVERY == 0]
    statuses = _uploaded(uploads)
    return {
        "bad_inputs": _FILES + len(uploads),
        "crashes": crashes + _crashes(statuses),
        "outcomes": dict(outcomes),
        "upload_statuses": dict(statuses),
        "peak_mb": round(peak / 2**20),
        "longest_cpu_s": round(cpu, 2),
    }


def harmful_files() -> dict[str, Any]:
    """Files made to do harm, uploaded to a server that must go on serving."""
    statuses: dict[str, int] = {}
    with _server() as server:
        for name, make in HARMFUL.items():
            statuses[name] = _upload(server, make())
            assert _upload(server, whole("docx")) in (200, 202), f"after {name} nothing is read any more"
    return {
        "bad_inputs": len(statuses),
        "crashes": _crashes(Counter(statuses.values())),
        "upload_statuses": statuses,
    }


def requests() -> dict[str, Any]:
    """Fuzzed requests, by the server's own description."""
    problem = None
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "data") as server:
        fuzz = ApiFuzz(server)
        try:
            fuzz.operations(examples=10)
            fuzz.chains(examples=80, steps=12)
        except BaseExceptionGroup as failures:
            problem = str(failures.exceptions[0])[:2000]
    return {
        "bad_inputs": fuzz.requests,
        "crashes": int(problem is not None),
        "statuses": {str(status): count for status, count in sorted(fuzz.statuses.items())},
        "problem": problem,
    }


def _server() -> Any:
    folder = tempfile.mkdtemp()
    return served(
        Path(folder) / "data",
        max_file_bytes=_LIMITS.file_bytes,
        max_unpacked_bytes=_LIMITS.unpacked_bytes,
        intake_memory_mb=_LIMITS.memory_bytes >> 20,
        intake_seconds=_LIMITS.seconds,
    )


def _uploaded(files: list[bytes]) -> Counter[int]:
    with _server() as server:
        return Counter(_upload(server, data) for data in files)


def _upload(server: Served, data: bytes) -> int:
    """The status; 599 when the server gave no answer."""
    headers = {"Authorization": f"Bearer {server.place.admin_key}"}
    try:
        return httpx.post(
            f"{server.url}/documents", files={"file": ("file", data)}, headers=headers, timeout=120
        ).status_code
    except httpx.TransportError:
        return 599


def _crashes(statuses: Counter[int]) -> int:
    return sum(count for status, count in statuses.items() if status >= 500)


def _exceeds(outcome: Outcome) -> bool:
    """A second more than the limit is the kernel's."""
    return outcome.peak_bytes > _LIMITS.memory_bytes or outcome.cpu_seconds > _LIMITS.seconds + 1


def _name(outcome: Outcome) -> str:
    if outcome.said is None:
        return f"ended with {outcome.code}"
    return "read" if "text" in outcome.said else outcome.said["refused"]
