"""Running jobs: claim, finish or hand back; what a killed child leaves is recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from redis import Redis

from km_registry.config import RegistrySettings
from km_registry.errors import KMError, StaleAttemptError
from km_registry.jobs import RqJobQueue
from km_registry.registry import Registry
from km_registry.types import Job, JobState, Principal
from tests.support import stage_km
from trainer_worker import pipeline, worker
from trainer_worker.config import TrainerSettings

#: A worker whose trainings do what the test says; importing torch is left out.
WORKER = """
import os, signal, sys, threading, types
from trainer_worker.config import TrainerSettings
def train_km(registry, settings, job):
    print("training", os.getpid(), flush=True)
    {body}
sys.modules["trainer_worker.pipeline"] = types.SimpleNamespace(train_km=train_km)
from trainer_worker.worker import work
work(TrainerSettings())
"""


@pytest.fixture
def environment(settings: RegistrySettings, redis_server: Redis, redis_socket: Path) -> dict[str, str]:
    """What a worker of `registry` finds in its environment."""
    return {"KM_DATA_DIR": str(settings.data_dir), "REDIS_URL": f"unix://{redis_socket}"}


@pytest.fixture
def trainer_settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> TrainerSettings:
    """A worker's settings, also in this process's environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # This process must not be killed when the thread that runs the tests ends.
    monkeypatch.setattr(worker, "die_with_parent", lambda _pid: None)
    return TrainerSettings()


@pytest.fixture
def job(registry: Registry, owner: Principal) -> Job:
    """A queued job."""
    return registry.add_document(owner, "Title", "Some text.")[1]


def training(monkeypatch: pytest.MonkeyPatch, act: Callable[[Registry, Job], Any]) -> None:
    monkeypatch.setattr(pipeline, "train_km", lambda registry, _settings, job: act(registry, job))


# --- run_job, in this process ------------------------------------------------------------------------------


def test_a_job_is_claimed_and_published(
    registry: Registry, job: Job, trainer_settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Job] = []

    def publish(registry: Registry, job: Job) -> Any:
        seen.append(job)
        document = registry.document_of(job.id)
        return registry.publish(job.id, job.attempt, stage_km(registry, document, job), {})

    training(monkeypatch, publish)
    worker.run_job(job.id)

    assert [(one.id, one.attempt, one.state) for one in seen] == [(job.id, 1, JobState.RUNNING)]
    assert registry.job(job.id).state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KMError("the generator is away"), "the generator is away"),
        (RuntimeError("shapes differ"), "RuntimeError: shapes differ"),
        (MemoryError(), "batch_tokens"),
    ],
)
def test_a_training_that_fails_says_why(
    registry: Registry,
    job: Job,
    trainer_settings: TrainerSettings,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
) -> None:
    def fail(_registry: Registry, _job: Job) -> None:
        raise error

    training(monkeypatch, fail)
    worker.run_job(job.id)

    after = registry.job(job.id)
    assert after.state is JobState.FAILED
    assert after.error
    assert reason in after.error
    assert registry.events_after(job.document_id)[-1].kind == "failed"


def test_a_job_that_no_longer_waits_is_left_alone(
    registry: Registry, job: Job, trainer_settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    training(monkeypatch, lambda *_: pytest.fail("trained"))
    registry.claim(job.id)

    worker.run_job(job.id)
    worker.run_job("job_unknown")

    assert (registry.job(job.id).state, registry.job(job.id).attempt) == (JobState.RUNNING, 1)


def test_sigterm_hands_the_job_back_at_once(
    registry: Registry, job: Job, trainer_settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_registry: Registry, _job: Job) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(20)
        pytest.fail("went on")

    before = signal.getsignal(signal.SIGTERM)
    training(monkeypatch, stopped)
    worker.run_job(job.id)

    assert (registry.job(job.id).state, registry.job(job.id).attempt) == (JobState.QUEUED, 1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_in_the_middle_of_the_claim_hands_the_job_back(
    registry: Registry, job: Job, trainer_settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Registry.claim

    def claimed(self: Registry, job_id: str) -> Job | None:
        made = claim(self, job_id)
        os.kill(os.getpid(), signal.SIGTERM)
        return made

    monkeypatch.setattr(Registry, "claim", claimed)
    training(monkeypatch, lambda *_: pytest.fail("trained"))
    worker.run_job(job.id)

    assert (registry.job(job.id).state, registry.job(job.id).attempt) == (JobState.QUEUED, 1)


def test_sigterm_after_the_job_was_taken_away_changes_nothing(
    registry: Registry,
    owner: Principal,
    job: Job,
    trainer_settings: TrainerSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cancelled(registry: Registry, job: Job) -> None:
        registry.tombstone(owner, job.document_id)
        raise worker.JobInterrupted

    training(monkeypatch, cancelled)
    worker.run_job(job.id)

    assert registry.job(job.id).state is JobState.CANCELLED


@pytest.mark.parametrize("error", [StaleAttemptError(), RuntimeError("whatever")])
def test_a_job_that_was_taken_away_is_not_failed(
    registry: Registry,
    job: Job,
    trainer_settings: TrainerSettings,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def overtaken(registry: Registry, job: Job) -> None:
        registry.release(job.id, job.attempt)
        registry.claim(job.id)
        raise error

    training(monkeypatch, overtaken)
    worker.run_job(job.id)

    assert (registry.job(job.id).state, registry.job(job.id).attempt) == (JobState.RUNNING, 2)


def test_without_redis_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(KMError, match="REDIS_URL"):
        worker.work(TrainerSettings(data_dir=tmp_path, redis_url=None))


# --- the heartbeat -----------------------------------------------------------------------------------------


def test_the_row_hears_the_heart(registry: Registry, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.01)
    beats = threading.Semaphore(0)
    heartbeat = Registry.heartbeat

    def beat(self: Registry, job_id: str, attempt: int) -> None:
        heartbeat(self, job_id, attempt)
        beats.release()

    monkeypatch.setattr(Registry, "heartbeat", beat)
    claimed = registry.claim(job.id)
    assert claimed
    with worker._heartbeat(registry, claimed):
        assert all(beats.acquire(timeout=10) for _ in range(3))

    after = registry.job(job.id)
    assert after.heartbeat_at
    assert claimed.heartbeat_at
    assert after.heartbeat_at > claimed.heartbeat_at


def test_the_child_leaves_when_its_job_was_taken_away(
    registry: Registry, owner: Principal, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.01)
    left = threading.Event()
    codes: set[int] = set()

    def leave(code: int) -> None:
        codes.add(code)
        left.set()

    monkeypatch.setattr(worker.os, "_exit", leave)
    claimed = registry.claim(job.id)
    assert claimed
    with worker._heartbeat(registry, claimed):
        registry.tombstone(owner, job.document_id)
        assert left.wait(10)

    assert codes == {0}


def test_the_child_that_ended_its_job_itself_is_not_cut_off(
    registry: Registry, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = threading.Event()

    def gone(*_: Any) -> None:
        refused.set()
        raise StaleAttemptError

    monkeypatch.setattr(Registry, "heartbeat", gone)
    monkeypatch.setattr(worker.os, "_exit", lambda _code: pytest.fail("cut off"))
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.2)
    claimed = registry.claim(job.id)
    assert claimed
    with worker._heartbeat(registry, claimed):
        assert refused.wait(10)


# --- children that were killed -----------------------------------------------------------------------------

KILLED, EXIT_3 = int(signal.SIGKILL), 3 << 8  # as waitpid says it


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (KILLED, "by signal 9 (out of memory?)"),
        (int(signal.SIGSEGV), "by signal 11"),
        (EXIT_3, "with exit code 3"),
    ],
)
def test_a_killed_childs_job_fails_with_the_reason(
    registry: Registry,
    job: Job,
    trainer_settings: TrainerSettings,
    redis_server: Redis,
    status: int,
    reason: str,
) -> None:
    registry.claim(job.id)

    worker._record_killed(trainer_settings, redis_server, rq_job(job), status)

    after = registry.job(job.id)
    assert after.state is JobState.FAILED
    assert after.error == f"the training process was ended {reason}"


def test_a_child_killed_because_the_worker_stops_has_not_failed(
    registry: Registry, job: Job, trainer_settings: TrainerSettings, redis_server: Redis
) -> None:
    registry.claim(job.id)

    worker._record_killed(trainer_settings, redis_server, rq_job(job), KILLED, stopping=True)

    assert registry.job(job.id).state is JobState.QUEUED


def test_a_killed_child_says_nothing_about_another_workers_attempt(
    registry: Registry, job: Job, trainer_settings: TrainerSettings, redis_server: Redis
) -> None:
    registry.claim(job.id)
    registry.release(job.id, 1)
    registry.claim(job.id)

    for stopping in (False, True):
        worker._record_killed(trainer_settings, redis_server, rq_job(job), KILLED, stopping=stopping)

    assert (registry.job(job.id).state, registry.job(job.id).attempt) == (JobState.RUNNING, 2)


def test_a_killed_childs_job_may_be_gone(trainer_settings: TrainerSettings, redis_server: Redis) -> None:
    unknown = SimpleNamespace(args=["job_unknown"], id="job_unknown-0")

    worker._record_killed(trainer_settings, redis_server, unknown, KILLED)  # type: ignore[arg-type]


def rq_job(job: Job) -> Any:
    return SimpleNamespace(args=[job.id], id=f"{job.id}-{job.attempt}")


# --- real worker processes ---------------------------------------------------------------------------------


@contextmanager
def working(environment: dict[str, str], body: str) -> Iterator[subprocess.Popen[str]]:
    """A real worker whose training is `body`."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER.format(body=body)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def training_pid(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    word, pid = process.stdout.readline().split()
    assert word == "training"
    return int(pid)


def until_finished(registry: Registry, job_id: str) -> Job:
    end = time.monotonic() + 30
    while not (job := registry.job(job_id)).state.finished:
        assert time.monotonic() < end, job
        time.sleep(0.02)  # the row is another process's; nothing here is woken
    return job


def test_a_child_killed_by_the_kernel_fails_its_job_and_the_worker_lives_on(
    registry: Registry, owner: Principal, job: Job, redis_server: Redis, environment: dict[str, str]
) -> None:
    queue = RqJobQueue(redis_server)
    queue.enqueue(job)

    with working(environment, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        first = until_finished(registry, job.id)
        again = registry.retrain(owner, job.document_id)
        queue.enqueue(again)
        second = until_finished(registry, again.id)

        assert process.poll() is None

    for ended in (first, second):
        assert ended.state is JobState.FAILED
        assert ended.error
        assert "signal 9" in ended.error


@pytest.mark.parametrize(
    "body",
    [
        "threading.Event().wait(600)",
        # Deaf, as a long product of matrices is: it has to be killed, and has not failed by that.
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); threading.Event().wait(600)",
    ],
    ids=["listening", "deaf"],
)
def test_a_worker_that_is_stopped_hands_its_job_back_and_leaves(
    registry: Registry, job: Job, redis_server: Redis, environment: dict[str, str], body: str
) -> None:
    RqJobQueue(redis_server).enqueue(job)

    with working(environment | {"KM_SHUTDOWN_GRACE": "0.5"}, body) as process:
        child = training_pid(process)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=5)

    assert process.returncode == 0
    assert not psutil.pid_exists(child)
    assert (registry.job(job.id).state, registry.job(job.id).attempt) == (JobState.QUEUED, 1)


def test_a_child_ends_with_its_worker(
    registry: Registry, job: Job, redis_server: Redis, environment: dict[str, str]
) -> None:
    RqJobQueue(redis_server).enqueue(job)

    with working(environment, "threading.Event().wait(600)") as process:
        child = psutil.Process(training_pid(process))
        process.kill()
        gone, _ = psutil.wait_procs([child], timeout=5)

    assert gone == [child] or child.status() == psutil.STATUS_ZOMBIE


def test_killing_after_the_child_has_ended_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    idle = SimpleNamespace(horse_pid=0, kill_horse=lambda: killed.append(0))
    busy = SimpleNamespace(horse_pid=42, kill_horse=lambda: killed.append(42))

    worker.KMWorker._kill_unless_ended(idle, 42)  # type: ignore[arg-type]
    worker.KMWorker._kill_unless_ended(busy, 41)  # type: ignore[arg-type]
    assert killed == []
    worker.KMWorker._kill_unless_ended(busy, 42)  # type: ignore[arg-type]
    assert killed == [42]
