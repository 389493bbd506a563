"""`python -m trainer_worker` as a process of its own, on a real Redis and a tiny base model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from km_registry.artifacts import WEIGHTS
from km_registry.config import RegistrySettings
from km_registry.jobs import RqJobQueue
from km_registry.registry import Registry
from km_registry.types import Event, Job, JobState, Principal, Stage
from tests.unit.trainer_worker.tiny import TEXT, TITLE, save_tiny_base


class Generator:
    """A generator that tells who asks and answers once it is let."""

    def __init__(self) -> None:
        self.asked, self.let = threading.Event(), threading.Event()
        self.count = 0
        asked, let, generator = self.asked, self.let, self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.set()
                generator.count += 1
                let.wait()
                texts = [f" Seven keepers said {body['seed'] % 97}{i}." for i in range(len(body["prompt"]))]
                choices = [{"index": index, "text": text} for index, text in enumerate(texts)]
                answer = json.dumps({"choices": choices}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def handle(self) -> None:
                with suppress(ConnectionError):  # whoever asked may have been killed
                    super().handle()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.let.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def generator() -> Iterator[Generator]:
    """A generator that does not answer before it is let."""
    made = Generator()
    yield made
    made.close()


RECIPE: dict[str, Any] = {
    "kinds": ["recall", "repeat", "summary"],
    "chunk_tokens": 60,
    "samples_per_chunk": 2,
    "filters": [],
    "max_target_tokens": 40,
    "rank": 4,
    "seed": 5,
}


@pytest.fixture
def environment(
    settings: RegistrySettings, redis_socket: Path, generator: Generator, tmp_path: Path
) -> dict[str, str]:
    """What a worker of `registry` finds in its environment."""
    return {
        "KM_DATA_DIR": str(settings.data_dir),
        "REDIS_URL": f"unix://{redis_socket}",
        "KM_BASE_MODEL": str(save_tiny_base(tmp_path / "tiny-llama")),
        "KM_GENERATOR_URL": generator.url,
        "KM_THREADS": "1",
        "KM_CHECKPOINT_SECONDS": "0.3",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


@contextmanager
def working(environment: dict[str, str]) -> Iterator[psutil.Process]:
    """A worker."""
    with subprocess.Popen([sys.executable, "-m", "trainer_worker"], env=os.environ | environment) as worker:
        try:
            yield psutil.Process(worker.pid)
        finally:
            with suppress(psutil.NoSuchProcess):
                # Its child ends with it.
                psutil.Process(worker.pid).kill()


def child_of(worker: psutil.Process) -> psutil.Process:
    (child,) = worker.children()
    return child


class Story:
    """What is told about documents, as it is told."""

    def __init__(self, registry: Registry, redis: Redis) -> None:
        self._registry = registry
        self._pubsub = redis.pubsub()
        self._pubsub.psubscribe("km:events:*")

    def until(self, job: Job, told: Callable[[Event], bool], *, after: int = 0) -> Event:
        """The first event of the job's document that is so."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for event in self._registry.events_after(job.document_id, after):
                if told(event):
                    return event
            self._pubsub.get_message(timeout=1)
        pytest.fail(f"it was not told: {self._registry.job(job.id)}")


@pytest.fixture
def story(registry: Registry, redis_server: Redis) -> Story:
    """What workers tell about the registry's jobs."""
    return Story(registry, redis_server)


def is_training(event: Event) -> bool:
    return event.data.get("stage") == "training" and event.data["step"] > 0


def test_sigterm_in_the_middle_of_a_job_hands_it_back(
    registry: Registry,
    owner: Principal,
    redis_server: Redis,
    generator: Generator,
    environment: dict[str, str],
) -> None:
    _, job, _ = registry.add_document(owner, TITLE, TEXT, {"kinds": ["summary"]})
    RqJobQueue(redis_server).enqueue(job)
    with working(environment) as worker:
        assert generator.asked.wait(120)
        family = [worker, *worker.children(recursive=True)]
        running = registry.job(job.id)

        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        psutil.wait_procs(family, timeout=5)
        took = time.monotonic() - began

        assert len(family) >= 2
        assert not any(process.is_running() for process in family)

    assert (running.state, running.stage) == (JobState.RUNNING, Stage.SYNTHESIS)
    assert registry.job(job.id).state is JobState.QUEUED
    assert took < 5


def test_a_child_killed_at_every_stage_ends_with_the_same_km(
    registry: Registry,
    owner: Principal,
    redis_server: Redis,
    generator: Generator,
    environment: dict[str, str],
    story: Story,
) -> None:
    queue = RqJobQueue(redis_server, registry)
    recipe = RECIPE | {"steps": 400, "dropout": 0.1, "learning_rate": 1e-3}
    _, job, _ = registry.add_document(owner, TITLE, TEXT, recipe)
    queue.enqueue(job)
    with working(environment) as worker:
        assert generator.asked.wait(120)
        child_of(worker).kill()
        generator.let.set()
        first = story.until(job, is_training)
        child_of(worker).kill()
        again = story.until(job, is_training, after=first.id)
        child_of(worker).terminate()  # as on a machine that is told to stop, by itself
        story.until(job, lambda event: event.kind == "published")

        _, whole, _ = registry.add_document(Principal(registry.create_user("Bob")[0].id), TITLE, TEXT, recipe)
        queue.enqueue(whole)
        story.until(whole, lambda event: event.kind == "published")

    # Not from the beginning: it went on from a checkpoint.
    assert again.data["step"] > 1
    assert (registry.job(job.id).crashes, registry.job(job.id).attempt) == (2, 4)
    kms = [registry.km_of(one.document_id) for one in (job, whole)]
    assert len({(Path(km.path) / WEIGHTS).read_bytes() for km in kms if km}) == 1
    assert kms[0].digest == kms[1].digest


def test_deleting_one_of_a_group_takes_effect_at_once_and_spares_the_others(
    registry: Registry,
    owner: Principal,
    redis_server: Redis,
    generator: Generator,
    environment: dict[str, str],
    story: Story,
    settings: RegistrySettings,
) -> None:
    queue = RqJobQueue(redis_server, registry)
    endless = RECIPE | {"kinds": ["recall", "repeat"], "steps": 100_000}
    uploads = [(TEXT + " One.", endless), (TEXT + " Two.", RECIPE), (TEXT + " Three.", endless)]
    learning, waiting, staying = [registry.add_document(owner, TITLE, *upload)[1] for upload in uploads]
    queue.enqueue(learning)

    def delete(job: Job) -> float:
        began = time.monotonic()
        registry.tombstone(owner, job.document_id)
        queue.stop(job.id)
        registry.purge(job.document_id)
        return time.monotonic() - began

    with working(environment) as worker:
        for job in (learning, staying):
            story.until(job, is_training)
        assert generator.asked.wait(120)
        child = child_of(worker)

        took = [delete(waiting), delete(learning)]

        assert child_of(worker) == child
        last = registry.events_after(staying.document_id)[-1].id
        story.until(staying, is_training, after=last)
        took.append(delete(staying))
        assert not child.is_running()

    assert max(took) < 2
    assert [path for path in (settings.data_dir / "work").rglob("*") if path.is_file()] == []


def until(so: Callable[[], bool]) -> None:
    """Wait for what another process does in files."""
    deadline = time.monotonic() + 120
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def handed_over(share: Path) -> int:
    """The step of the newest checkpoint that was handed over; 0 when there is none."""
    steps = [0]
    for path in [path for path in share.rglob("work/*/*") if "#" not in path.name]:
        # It may be a line of the journal only, or gone in this moment for a newer one.
        with suppress(FileNotFoundError, KeyError), tarfile.open(path) as archive:
            file = archive.extractfile("checkpoint.safetensors")
            assert file
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            steps.append(json.loads(header["__metadata__"]["run"])["fields"]["step"])
    return max(steps)


class TestMachinesThatShareAStore:
    @pytest.fixture
    def settings(self, settings: RegistrySettings, share: Path) -> RegistrySettings:
        return settings.model_copy(update={"store_url": f"file://{share}"})

    def test_one_that_is_lost_in_the_middle_of_a_training_costs_what_was_not_handed_over(
        self,
        registry: Registry,
        owner: Principal,
        redis_server: Redis,
        generator: Generator,
        environment: dict[str, str],
        story: Story,
        settings: RegistrySettings,
        share: Path,
        tmp_path: Path,
    ) -> None:
        queue = RqJobQueue(redis_server, registry)
        shared = environment | {
            "KM_STORE_URL": str(settings.store_url),
            "KM_DATABASE_URL": settings.effective_database_url,
            "KM_CHECKPOINT_SECONDS": "0.1",
        }
        _, job, _ = registry.add_document(owner, TITLE, TEXT, RECIPE | {"steps": 300})
        queue.enqueue(job)

        with working(shared) as worker:
            assert generator.asked.wait(120)
            with working(shared | {"KM_DATA_DIR": str(tmp_path / "elsewhere")}):
                generator.let.set()
                until(lambda: handed_over(share) >= 60)
                lost = [worker, *worker.children(recursive=True)]
                for process in lost:
                    process.kill()
                psutil.wait_procs(lost, timeout=10)
                shutil.rmtree(settings.data_dir / "work")
                asked, handed = generator.count, handed_over(share)
                registry.unfinished_jobs(stale_after=-60)
                queued = registry.events_after(job.document_id)[-1]
                queue.enqueue(registry.job(job.id))
                again = story.until(job, is_training, after=queued.id)
                story.until(job, lambda event: event.kind == "published")
                # By the worker, once it has published.
                until(lambda: not [path for path in share.rglob("work/*/*") if path.is_file()])

        assert again.data["step"] > handed
        assert generator.count == asked
        assert registry.job(job.id).attempt == 2
