"""`python -m trainer_worker` as a process of its own, on a real Redis and a tiny base model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from redis import Redis

from km_registry.config import RegistrySettings
from km_registry.jobs import RqJobQueue
from km_registry.registry import Registry
from km_registry.types import JobState, Principal, Stage
from tests.unit.trainer_worker.tiny import TEXT, TITLE, save_tiny_base


class Silent:
    """A generator that takes a request and never answers it."""

    def __init__(self) -> None:
        self.asked, self._over = threading.Event(), threading.Event()
        asked, over = self.asked, self._over

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.set()
                over.wait()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    """A generator that never answers."""
    generator = Silent()
    yield generator
    generator.close()


def test_sigterm_in_the_middle_of_a_job_hands_it_back(
    registry: Registry,
    owner: Principal,
    settings: RegistrySettings,
    redis_server: Redis,
    redis_socket: Path,
    silent: Silent,
    tmp_path: Path,
) -> None:
    _, job, _ = registry.add_document(owner, TITLE, TEXT, {"kinds": ["summary"]})
    RqJobQueue(redis_server).enqueue(job)
    environment = {
        "KM_DATA_DIR": str(settings.data_dir),
        "REDIS_URL": f"unix://{redis_socket}",
        "KM_BASE_MODEL": str(save_tiny_base(tmp_path / "tiny-llama")),
        "KM_GENERATOR_URL": silent.url,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    with subprocess.Popen([sys.executable, "-m", "trainer_worker"], env=os.environ | environment) as worker:
        try:
            assert silent.asked.wait(120)
            family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
            running = registry.job(job.id)

            began = time.monotonic()
            worker.send_signal(signal.SIGTERM)
            worker.wait(timeout=5)
            took = time.monotonic() - began
        finally:
            worker.kill()

    assert len(family) >= 2
    assert (running.state, running.stage) == (JobState.RUNNING, Stage.SYNTHESIS)
    assert registry.job(job.id).state is JobState.QUEUED
    assert not any(process.is_running() for process in family)
    assert worker.returncode == 0
    assert took < 5
