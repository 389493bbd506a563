"""A whole server on a tiny base model: gateway with the scripted engine, private Redis, worker, SQLite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
from transformers import AutoConfig

from km_registry import base_model
from km_registry.config import RegistrySettings
from tests.adapters import RANK, write_llama_adapter
from tests.serving import STOP_S, Server
from tests.support import complete_ke
from tests.unit.trainer_worker.tiny import save_tiny_base

#: What a crash costs is waited for here over and over, so leases are short. A process may be killed while it
#: trains any number of documents, none of which is to be given up for it.
SETTINGS = {
    "KM_LEASE_SECONDS": "4",
    "KM_RECONCILE_SECONDS": "0.5",
    "KM_CRASH_RETRIES": "1000",
    "KM_RETRIES": "1000",
    "KM_RETRY_SECONDS": "0.2",
    "KM_CHECKPOINT_SECONDS": "0.2",
    "KM_THREADS": "1",
}
REDIS = ("redis-server", "valkey-server")
_TIMEOUT_S = 40.0


class Stack:
    """Starts `km serve`, kills parts of it and starts it again, all on one data directory."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self._folder = folder
        self._options = options
        self._environment = SETTINGS | environment
        self.model = save_tiny_base(folder / "tiny-llama")
        self.server = self._start()
        ready = self.server.ready()
        self.admin_key: str = ready["admin_key"]
        self.url: str = ready["url"]
        self.client = self._client()

    @property
    def data_dir(self) -> Path:
        """Where it keeps everything."""
        return self.server.data_dir

    @property
    def settings(self) -> RegistrySettings:
        """For whoever looks into its records from outside."""
        return RegistrySettings(data_dir=self.data_dir, database_url=None, redis_url=None)

    # --- its processes -------------------------------------------------------------------------------------

    def victim(self, name: str) -> psutil.Process | None:
        """The process of this name: gateway, worker, child, redis; None when there is none just now."""
        if name == "gateway":
            return psutil.Process(self.server.process.pid)
        if name == "redis":
            return next((one for one in self._children() if one.name() in REDIS), None)
        worker = next((one for one in self._children() if _is_worker(one)), None)
        if name == "worker" or worker is None:
            return worker
        with suppress(psutil.NoSuchProcess):
            return next(iter(worker.children()), None)
        return None

    def kill(self, name: str) -> str | None:
        """kill -9; which process it was: of a worker without a child the worker itself."""
        process = self.victim(name)
        if process is None and name == "child":
            name, process = "worker", self.victim("worker")
        if process is None:
            return None
        with suppress(psutil.NoSuchProcess):
            process.kill()
            if name == "gateway":
                # Until it is gone it may look alive to `recover`.
                self.server.process.wait(STOP_S)
            return name
        return None

    def recover(self) -> None:
        """Have every part there again: the gateway is started anew, the others it starts itself."""
        if self.server.process.poll() is not None or not self._lives():
            self.server.end()
            self.server.until(lambda: not self.server.family(), STOP_S)
            self.client.close()
            self.server = self._start()
            self.url = self.server.ready()["url"]
            self.client = self._client()
        self.until(lambda: self.victim("redis") and self.victim("worker") and self._is_ready())

    def until(
        self,
        condition: Callable[[], object],
        within_s: float = 60.0,
        *,
        found: Callable[[], object] = lambda: "",
    ) -> None:
        """Wait for what other processes bring about; `found` is how things stand, for a failure's message."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s} s: {found()} {self.server.err[-5:]}"
            time.sleep(0.1)  # other processes do it: there is nothing here to await

    def close(self) -> None:
        """Stop it, by force where need be."""
        self.client.close()
        self.server.clean_up()

    # --- what it serves ------------------------------------------------------------------------------------

    def add_ke(self) -> str:
        """Register a KE of random weights as the default; its id."""
        directory = self._folder / "ke"
        directory.mkdir()
        layers = write_llama_adapter(directory, AutoConfig.from_pretrained(self.model), seed=3)
        (directory / "README.md").write_text("A KE made by a test.\n")
        fingerprint = base_model.resolve(str(self.model), self._folder).fingerprint
        complete_ke(directory, layers, rank=RANK, base_fingerprint=fingerprint)
        response = self.client.post("/kes", json={"directory": str(directory), "default": True})
        assert response.status_code == 201, response.text
        ke_id: str = response.json()["ke"]["id"]
        return ke_id

    def _start(self) -> Server:
        return Server(self._folder, self.model, *self._options, **self._environment)

    def _client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT_S)

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [one for one in psutil.Process(self.server.process.pid).children() if _lives(one)]
        return []

    def _lives(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            return _lives(psutil.Process(self.server.process.pid))
        return False

    def _is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return not self.client.get("/readyz").json()["missing"]
        return False


@contextmanager
def running(folder: Path, *options: str, **environment: str) -> Iterator[Stack]:
    """A stack, for as long as the block runs."""
    stack = Stack(folder, *options, **environment)
    try:
        yield stack
    finally:
        stack.close()


def _is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        # Once it works it has a title of its own; one that has just died has none.
        command = " ".join(process.cmdline())
        return command.endswith(" -m trainer_worker") or command.startswith("rq:worker")
    return False


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
