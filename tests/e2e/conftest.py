"""One real server for the end-to-end tests: gateway, vLLM, Redis, worker, SQLite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.client import read_events

#: A training of seconds: enough to be asked, measured and deleted, not to be good.
QUICK = {"kinds": ["recall", "qa"], "steps": 12, "batch_tokens": 192}
_START_S = 240.0


@dataclass(frozen=True)
class RunningServer:
    """Where it listens, who may do everything, and where it keeps things."""

    url: str
    admin_key: str
    data_dir: Path

    def client(self, key: str | None = None) -> httpx.Client:
        """A client with a key, the admin's unless another is given."""
        headers = {"Authorization": f"Bearer {key or self.admin_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=300)


@pytest.fixture(scope="session")
def server(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`km serve` with a fresh data directory on a free port. The base model is converted there already."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "data").mkdir(mode=0o700)
    if embedded_model.parent.name == "models":
        (folder / "data" / "models").symlink_to(embedded_model.parent, target_is_directory=True)
    ready, log = folder / "ready.json", folder / "server.log"
    command = [sys.executable, "-m", "server", "serve", "--port=0", f"--data-dir={folder / 'data'}"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KM_")}
    # In bfloat16 near-ties fall either way with the shape of the batch; whether KMs leak shows in float32.
    clean["KM_DTYPE"] = "float32"
    clean["KM_CONFIG"] = os.devnull
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--ready-file={ready}"], env=clean, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + _START_S
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)  # another process writes the file: there is nothing here to await
        started = json.loads(ready.read_text())
        yield RunningServer(started["url"], started["admin_key"], folder / "data")
    finally:
        process.terminate()
        process.wait(15)


def events(client: httpx.Client, document_id: str) -> list[tuple[str, dict[str, Any]]]:
    """Every event of the document's job until its last."""
    with client.stream("GET", f"/documents/{document_id}/events") as response:
        assert response.status_code == 200
        return [(event.kind, event.data) for event in read_events(response.iter_lines())]
