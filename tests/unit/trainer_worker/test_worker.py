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
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Worker
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from km_registry.config import RegistrySettings
from km_registry.errors import KMError
from km_registry.jobs import RqJobQueue
from km_registry.registry import Registry
from km_registry.types import Job, JobState, Principal
from tests.support import stage_km
from trainer_worker import pipeline, worker
from trainer_worker.attempts import Attempts
from trainer_worker.config import TrainerSettings

#: A worker whose trainings do what the test says; importing torch is left out.
WORKER = """
import os, signal, sys, threading, types
from trainer_worker.config import TrainerSettings
def train_kms(registry, settings, attempts, idle_workers):
    print("training", os.getpid(), flush=True)
    {body}
sys.modules["trainer_worker.pipeline"] = types.SimpleNamespace(train_kms=train_kms)
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


Act = Callable[[Registry, Attempts], Any]


def training(monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
    monkeypatch.setattr(
        pipeline, "train_kms", lambda registry, _settings, attempts, **_: act(registry, attempts)
    )


# --- run_job, in this process ------------------------------------------------------------------------------


def test_a_job_is_claimed_and_trained(
    registry: Registry, job: Job, trainer_settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Job] = []

    def publish(registry: Registry, attempts: Attempts) -> None:
        (attempt,) = attempts.held()
        seen.append(attempt.job)
        document = registry.document_of(job.id)
        staged = stage_km(registry, document, attempt.job)
        registry.publish(job.id, attempt.job.attempt, staged, {})

    training(monkeypatch, publish)
    worker.run_job(job.id)

    assert [(one.id, one.attempt, one.state) for one in seen] == [(job.id, 1, JobState.RUNNING)]
    assert registry.job(job.id).state is JobState.SUCCEEDED


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
    def stopped(_registry: Registry, _attempts: Attempts) -> None:
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

    def claimed(self: Registry, job_id: str, **options: Any) -> Job | None:
        made = claim(self, job_id, **options)
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
    def cancelled(registry: Registry, _attempts: Attempts) -> None:
        registry.tombstone(owner, job.document_id)
        raise worker.JobInterrupted

    training(monkeypatch, cancelled)
    worker.run_job(job.id)

    assert registry.job(job.id).state is JobState.CANCELLED


def test_sigterm_hands_back_all_that_is_held(
    registry: Registry,
    owner: Principal,
    job: Job,
    trainer_settings: TrainerSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = registry.add_document(owner, "Another", "Another text.")[1]

    def stopped(_registry: Registry, attempts: Attempts) -> None:
        attempts.claim_more(2, lambda _job: True)
        assert len(attempts) == 2
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    training(monkeypatch, stopped)
    worker.run_job(job.id)

    for one in (job, other):
        assert (registry.job(one.id).state, registry.job(one.id).attempt) == (JobState.QUEUED, 1)
        assert registry.run_of(one.id) is None


def test_without_redis_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(KMError, match="REDIS_URL"):
        worker.work(TrainerSettings(data_dir=tmp_path, redis_url=None))


# --- children that ended -----------------------------------------------------------------------------------

KILLED, EXIT_3 = int(signal.SIGKILL), 3 << 8  # as waitpid says it


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (KILLED, "by signal 9 (out of memory?)"),
        (int(signal.SIGSEGV), "by signal 11"),
        (EXIT_3, "with exit code 3"),
        (0, "with exit code 0"),
        (None, "with exit code 0"),
    ],
)
def test_how_a_child_crashed_is_said(status: int | None, reason: str) -> None:
    assert worker.how_it_crashed(status) == f"the training process was ended {reason}"


def test_what_an_ended_child_still_held_waits_in_the_queue_at_once(
    registry: Registry, job: Job, trainer_settings: TrainerSettings, redis_server: Redis
) -> None:
    registry.claim(job.id, run_id="run-0")

    worker.end_run(trainer_settings, redis_server, "run-0", "it crashed")

    assert (registry.job(job.id).state, registry.job(job.id).crashes) == (JobState.QUEUED, 1)
    assert RqJobQueue(redis_server).waiting() == [job.id]


def test_an_ended_child_changes_nothing_of_another_runs_attempt(
    registry: Registry, job: Job, trainer_settings: TrainerSettings, redis_server: Redis
) -> None:
    registry.claim(job.id, run_id="run-0")
    registry.release(job.id, 1)
    registry.claim(job.id, run_id="run-1")

    worker.end_run(trainer_settings, redis_server, "run-0", "it crashed")

    assert (registry.job(job.id).state, registry.job(job.id).attempt) == (JobState.RUNNING, 2)


def test_without_redis_a_training_goes_on_and_knows_of_no_idle_workers(tmp_path: Path) -> None:
    nobody = Redis(unix_socket_path=str(tmp_path / "nobody"), retry=Retry(NoBackoff(), 0))
    assert worker._idle_workers(nobody, ["default"]) == 0


def test_idle_workers_are_those_that_live_and_wait(redis_server: Redis) -> None:
    names = {"ours": os.getpid(), "busy": os.getpid(), "dead": 2**22 + 1, "others": os.getpid()}
    for name, pid in names.items():
        labels = ["others"] if name == "others" else ["default", "large"]
        one = Worker(worker._queues(redis_server, labels), name=name, serializer=JSONSerializer)
        one.pid = pid
        one.register_birth()
        one.set_state(WorkerStatus.BUSY if name == "busy" else WorkerStatus.IDLE)

    # Once, although it serves both.
    assert worker._idle_workers(redis_server, ["default", "large"]) == 1


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


def said(process: subprocess.Popen[str]) -> int:
    """The number in the next line that begins with "training"; the log stands between."""
    assert process.stdout
    line = next(line for line in process.stdout if line.startswith("training "))
    return int(line.split()[1])


def until_finished(registry: Registry, job_id: str) -> Job:
    end = time.monotonic() + 30
    while not (job := registry.job(job_id)).state.finished:
        assert time.monotonic() < end, job
        time.sleep(0.02)  # the row is another process's; nothing here is woken
    return job


def test_a_job_whose_children_are_killed_is_given_up_and_the_worker_lives_on(
    registry: Registry, owner: Principal, job: Job, redis_server: Redis, environment: dict[str, str]
) -> None:
    RqJobQueue(redis_server).enqueue(job)

    with working(environment, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        ended = until_finished(registry, job.id)

        assert process.poll() is None

    assert (ended.state, ended.attempt) == (JobState.FAILED, 3)
    assert ended.error
    assert "signal 9" in ended.error


def test_an_entry_whose_job_was_trained_beside_another_is_nothing_to_do(
    registry: Registry, owner: Principal, job: Job, redis_server: Redis, environment: dict[str, str]
) -> None:
    other = registry.add_document(owner, "Another", "Another text.")[1]
    last = registry.add_document(owner, "The last", "The last text.")[1]
    queue = RqJobQueue(redis_server)
    for one in (job, other, last):
        queue.enqueue(one)
    body = "attempts.claim_more(2, lambda job: True); [attempts.fail(one, 'done') for one in attempts.held()]"

    with working(environment, body):
        until_finished(registry, last.id)
        while queue.waiting():  # an entry is left that finds nothing to do
            pass

    assert [registry.job(one.id).attempt for one in (job, other, last)] == [1, 1, 1]


def test_a_member_that_is_deleted_leaves_the_group_and_the_others_go_on(
    registry: Registry, owner: Principal, job: Job, redis_server: Redis, environment: dict[str, str]
) -> None:
    other = registry.add_document(owner, "Another", "Another text.")[1]
    queue = RqJobQueue(redis_server, registry)
    queue.enqueue(job)
    body = (
        "attempts.claim_more(2, lambda job: True); print('training', len(attempts), flush=True); "
        "threading.Event().wait(600)"
    )

    with working(environment, body) as process:
        child = psutil.Process(said(process))
        assert said(process) == 2
        registry.tombstone(owner, job.document_id)
        began = time.monotonic()
        queue.stop(job.id)
        took = time.monotonic() - began

        assert child.is_running()
        assert registry.run_of(job.id) is None
        assert registry.run_of(other.id).job_ids == (other.id,)
        assert took < 1.5

        registry.tombstone(owner, other.document_id)
        queue.stop(other.id)
        # It has nothing else to do, so it is not waited for.
        assert not child.is_running()


def test_a_child_that_does_not_let_go_is_killed_and_the_others_are_queued_again(
    registry: Registry, owner: Principal, job: Job, redis_server: Redis, environment: dict[str, str]
) -> None:
    other = registry.add_document(owner, "Another", "Another text.")[1]
    queue = RqJobQueue(redis_server, registry)
    queue.enqueue(job)
    body = (
        "attempts.claim_more(2, lambda job: True); attempts._done.set(); "
        "print('training', len(attempts), flush=True); threading.Event().wait(600)"
    )

    with working(environment, body) as process:
        child = psutil.Process(said(process))
        assert said(process) == 2
        registry.tombstone(owner, job.document_id)
        began = time.monotonic()
        queue.stop(job.id)
        took = time.monotonic() - began

        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        said(process)  # the other begins anew, in another child

    assert took < 2
    assert (registry.job(other.id).attempt, registry.job(other.id).crashes) == (2, 0)


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
        child = said(process)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=5)

    assert process.returncode == 0
    assert not psutil.pid_exists(child)
    assert (registry.job(job.id).state, registry.job(job.id).attempt) == (JobState.QUEUED, 1)
    assert registry.job(job.id).crashes == 0


def test_a_drained_workers_job_is_taken_up_at_once_by_another_that_serves_its_queue(
    registry: Registry, owner: Principal, redis_server: Redis, environment: dict[str, str]
) -> None:
    plain = registry.add_document(owner, "Plain", "Any worker may train it.")[1]
    large = registry.add_document(owner, "Large", "A large GPU is needed.", {"queue": "large-gpu"})[1]
    queue = RqJobQueue(redis_server)
    for one in (plain, large):
        queue.enqueue(one)
    waits, serving = "threading.Event().wait(600)", environment | {"KM_QUEUES": "large-gpu"}

    with working(serving, waits) as first:
        said(first)
        (seen,) = queue.workers()
        assert (seen.queues, registry.jobs_held(seen.run_id or "")) == (("large-gpu",), [large.id])
        with working(serving, waits) as second:
            first.send_signal(signal.SIGTERM)
            said(second)  # it trains now
            assert (registry.job(large.id).state, registry.job(large.id).attempt) == (JobState.RUNNING, 2)
            assert registry.job(large.id).crashes == 0
        first.wait(timeout=5)

    assert registry.job(plain.id).state is JobState.QUEUED
    assert queue.waiting() == [plain.id]


def test_every_heartbeat_of_a_worker_looks_for_what_others_deleted(redis_server: Redis) -> None:
    one = worker.KMWorker(worker._queues(redis_server, ["default"]), serializer=JSONSerializer)
    beats: list[str] = []
    one.on_heartbeat = lambda: beats.append("swept")

    one.heartbeat()
    with redis_server.pipeline() as pipeline:
        one.heartbeat(30, pipeline)

    assert beats == ["swept", "swept"]


def test_what_another_machine_deleted_is_swept(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    settings = RegistrySettings(data_dir=tmp_path / "data", store_url=f"file://{tmp_path / 'share'}")
    with Registry.open(settings) as registry:
        pass
    copy = tmp_path / "data" / "cache" / "kms" / "km_gone"
    copy.mkdir()
    work = tmp_path / "data" / "work" / "job_gone"
    work.mkdir()

    for _ in range(2):
        worker._sweep(registry)

    assert not copy.exists()
    assert not work.exists()


def test_a_child_ends_with_its_worker(
    registry: Registry, job: Job, redis_server: Redis, environment: dict[str, str]
) -> None:
    RqJobQueue(redis_server).enqueue(job)

    with working(environment, "threading.Event().wait(600)") as process:
        child = psutil.Process(said(process))
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
