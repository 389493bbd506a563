"""Reliability: many users against a model of who may do what, and whether refusals tell by their time."""

from __future__ import annotations

import http.client
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from scipy.stats import ks_2samp, mannwhitneyu

from km_registry.types import Principal
from tests.access_machine import UNKNOWN, machine_on
from tests.inprocess import served
from tests.unit.server.conftest import train

_TRIES = 2000
_EXAMPLES = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def access() -> dict[str, Any]:
    """How many comparisons with the model there were, and how many failed (the first one ends it)."""
    problem = None
    with tempfile.TemporaryDirectory() as folder, machine_on(Path(folder) / "data") as machine:
        try:
            run_state_machine_as_test(machine, settings=_EXAMPLES)
        except AssertionError as error:
            problem = str(error)
        checks = machine.site.checks
    return {
        "acl_checks": checks.total(),
        "acl_leaks": int(problem is not None),
        "by_action": dict(checks),
        "problem": problem,
    }


def timing(*, seed: int) -> dict[str, Any]:
    """How long "not yours" and "not there" take, 2,000 times each in random order, over HTTP.

    `auc` is the chance that one "not yours" takes longer than one "not there" (Mann-Whitney's U as an effect
    size): 0.5 is no difference. `noise_auc` is the same between the two halves of "not there".
    """
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "data") as server:
        registry = server.place.registry
        owner = Principal(registry.create_user("Owner")[0].id)
        document, _, _ = registry.add_document(
            owner, "Harbour", "The harbour of Ostrell opens at six. " * 200
        )
        train(registry, document.id, owner)
        _, key = registry.create_user("Stranger")
        parts = urlsplit(server.url)
        assert parts.hostname is not None
        line = http.client.HTTPConnection(parts.hostname, parts.port)
        found = {}
        for method, path, body in (
            ("GET", "/documents/{}", None),
            ("DELETE", "/documents/{}", None),
            ("POST", "/answer", {"document_id": "{}", "question": "When does it open?"}),
            ("POST", "/v1/completions", {"model": "{}", "prompt": "It opens"}),
        ):
            asked = _Asked(line, key, method, path, body)
            found[f"{method} {path}"] = _compared(asked, document.id, random.Random(seed))
        line.close()
    return {"tries": _TRIES, "test": "Mann-Whitney U, two-sided; Kolmogorov-Smirnov", "routes": found}


class _Asked:
    """A request of a stranger for a document; its time in milliseconds."""

    def __init__(
        self, line: http.client.HTTPConnection, key: str, method: str, path: str, body: dict[str, str] | None
    ) -> None:
        self._line, self._method, self._path, self._body = line, method, path, body
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def time(self, document_id: str) -> float:
        body = json.dumps(self._body).replace("{}", document_id) if self._body else None
        path = self._path.format(document_id)
        began = time.perf_counter()
        self._line.request(self._method, path, body, self._headers)
        response = self._line.getresponse()
        response.read()
        took = time.perf_counter() - began
        assert response.status == 404, response.status
        return took * 1000


def _compared(asked: _Asked, not_yours: str, rng: random.Random) -> dict[str, float]:
    for _ in range(50):
        asked.time(not_yours), asked.time(UNKNOWN)
    order = [not_yours, UNKNOWN] * _TRIES
    rng.shuffle(order)
    times: dict[str, list[float]] = {not_yours: [], UNKNOWN: []}
    for document_id in order:
        times[document_id].append(asked.time(document_id))
    theirs, nobodys = times[not_yours], times[UNKNOWN]
    test = mannwhitneyu(theirs, nobodys)
    noise = mannwhitneyu(nobodys[::2], nobodys[1::2])
    halves = len(nobodys[::2]) * len(nobodys[1::2])
    return {
        "not_yours_ms": round(statistics.median(theirs), 3),
        "not_there_ms": round(statistics.median(nobodys), 3),
        "auc": round(float(test.statistic) / _TRIES**2, 4),
        "noise_auc": round(float(noise.statistic) / halves, 4),
        "p": round(float(test.pvalue), 4),
        "ks_p": round(float(ks_2samp(theirs, nobodys).pvalue), 4),
    }
