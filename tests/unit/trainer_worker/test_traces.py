"""What a collector gets of trainings: in whose trace, which stages, how they ended, and nothing of a text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from km_registry.config import GeneratorEndpoint, RegistrySettings
from km_registry.jobs import RqJobQueue, reconcile
from km_registry.registry import Registry
from km_registry.tracing import Span, Tracing
from km_registry.types import Job, Principal, Stage
from tests.otlp import Collector, Received, collecting
from tests.support import stage_km
from trainer_worker import pipeline, preparation, worker
from trainer_worker.attempt import Attempt
from trainer_worker.attempts import Attempts
from trainer_worker.generator import Ask, Generator
from trainer_worker.pipeline import train_kms
from trainer_worker.progress import Reporter

from .tiny import TEXT, TITLE
from .trainings import Trainings

STAGES = ["synthesis", "teacher", "training", "evaluation", "export", "publish"]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture
def job(registry: Registry, owner: Principal) -> Job:
    """A queued job."""
    return registry.add_document(owner, TITLE, TEXT)[1]


@pytest.fixture
def environment(
    collector: Collector,
    settings: RegistrySettings,
    redis_server: Redis,
    redis_socket: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a worker of `registry` finds in its environment."""
    monkeypatch.setenv("KM_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("REDIS_URL", f"unix://{redis_socket}")
    monkeypatch.setenv("KM_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setattr(worker, "die_with_parent", lambda _pid: None)


def parts(collector: Collector, of: Received) -> list[str]:
    """Names of the span's children, in order."""
    return [span.name for span in collector.spans if span.parent == of.id]


def publishing(registry: Registry, _settings: Any, attempts: Attempts, **_: Any) -> None:
    """A training without a model: what is held is published at once."""
    for attempt in attempts.held():
        report = Reporter(registry, attempt)
        report.stage(Stage.SYNTHESIS)
        report.stage(Stage.TRAINING, 10)
        document = registry.document_of(attempt.job.id)
        registry.publish(attempt.job.id, attempt.job.attempt, stage_km(registry, document, attempt.job), {})
        attempts.finished(attempt)


def test_a_training_continues_the_trace_of_its_upload(
    registry: Registry,
    job: Job,
    redis_server: Redis,
    collector: Collector,
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "train_kms", publishing)
    with closing(Tracing.to(collector.endpoint, "km-gateway")) as gateway, gateway.begin("upload"):
        RqJobQueue(redis_server).enqueue(job)
    worker.run_job(job.id)

    upload, train = collector.one("upload"), collector.one("train")
    assert (train.trace, train.parent, train.service, train.kind) == (upload.trace, upload.id, "km-worker", 5)
    assert train.attributes == {
        "km.job_id": job.id,
        "km.document_id": job.document_id,
        "km.attempt": 1,
        "km.outcome": "published",
    }
    assert parts(collector, train) == ["synthesis", "training"]
    assert {span.trace for span in collector.spans} == {upload.trace}


def test_a_job_that_was_enqueued_by_reconciling_begins_a_trace(
    registry: Registry,
    job: Job,
    redis_server: Redis,
    collector: Collector,
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "train_kms", publishing)
    reconcile(registry, RqJobQueue(redis_server))
    worker.run_job(job.id)
    assert (collector.one("train").parent, collector.one("train").attributes["km.job_id"]) == ("", job.id)


def test_each_of_those_that_train_together_continues_its_own(
    registry: Registry,
    owner: Principal,
    job: Job,
    redis_server: Redis,
    collector: Collector,
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = registry.add_document(owner, "Another", f"{TEXT} Another.")[1]

    def together(registry: Registry, settings: Any, attempts: Attempts, **_: Any) -> None:
        attempts.claim_more(2, lambda _job: True)
        publishing(registry, settings, attempts)

    monkeypatch.setattr(pipeline, "train_kms", together)
    with closing(Tracing.to(collector.endpoint, "km-gateway")) as gateway:
        for one in (job, other):
            with gateway.begin(f"upload of {one.id}"):
                RqJobQueue(redis_server).enqueue(one)
    worker.run_job(job.id)

    found = {span.attributes["km.job_id"]: span.parent for span in collector.named("train")}
    assert found == {one.id: collector.one(f"upload of {one.id}").id for one in (job, other)}


def test_a_training_that_is_interrupted_is_handed_back_and_says_so(
    registry: Registry, job: Job, collector: Collector, environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise worker.JobInterrupted

    monkeypatch.setattr(pipeline, "train_kms", stopped)
    worker.run_job(job.id)
    assert collector.one("train").attributes["km.outcome"] == "handed back"


def test_a_collector_that_is_not_there_disturbs_no_training(
    registry: Registry, job: Job, environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KM_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(pipeline, "train_kms", publishing)
    worker.run_job(job.id)
    assert registry.km_of(job.document_id) is not None


# --- the real stages, on a tiny model ----------------------------------------------------------------------


@pytest.fixture
def traced(trainings: Trainings, collector: Collector) -> Any:
    """Trains a job with everything traced, and has it all at the collector."""

    def run(job: Job) -> None:
        with closing(Tracing.to(collector.endpoint, "km-worker")) as tracing:

            def begun(claimed: Job) -> Span:
                return tracing.begin("train", job_id=claimed.id)

            with Attempts(trainings.registry, "run-0", begun) as attempts:
                assert attempts.claim(job.id)
                train_kms(trainings.registry, trainings.settings, attempts)

    return run


def test_every_stage_is_a_part_and_none_holds_the_text(
    trainings: Trainings, collector: Collector, traced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str | None] = []
    played: Any = preparation.Generator

    def recorded(*given: Any, traceparent: str | None, **options: Any) -> Any:
        told.append(traceparent)
        return played(*given, **options)

    monkeypatch.setattr(preparation, "Generator", recorded)
    traced(trainings.upload())

    train = collector.one("train")
    assert [str(one)[3:52] for one in told] == [f"{train.trace}-{collector.one('synthesis').id}"]
    assert train.attributes["km.outcome"] == "published"
    assert parts(collector, train) == STAGES
    assert sum(collector.one(stage).seconds for stage in STAGES) <= train.seconds
    words = {word for word in f"{TITLE} {TEXT} Seven keepers said".split() if len(word) > 5}
    assert [word for word in words if word.encode() in collector.raw] == []


def test_a_training_that_fails_says_in_which_stage_and_only_the_kind(
    trainings: Trainings, collector: Collector, traced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise ValueError(TEXT)

    monkeypatch.setattr("trainer_worker.group.compute_targets", breaks)
    traced(trainings.upload())

    teacher, train = collector.one("teacher"), collector.one("train")
    assert (teacher.failed, teacher.attributes) == (True, {"error.type": "ValueError"})
    assert (train.failed, train.attributes["km.outcome"]) == (True, "failed")
    assert [word for word in TEXT.split() if len(word) > 5 and word.encode() in collector.raw] == []


def test_after_an_attempt_has_ended_no_stage_of_it_begins(
    registry: Registry, job: Job, collector: Collector
) -> None:
    with closing(Tracing.to(collector.endpoint, "km-worker")) as tracing:
        attempt = Attempt(job, tracing.begin("train"))
        attempt.trace.stage("synthesis")
        attempt.trace.end("taken away")
        attempt.trace.stage("teacher")
        attempt.trace.end("failed")
    assert [span.name for span in collector.spans] == ["synthesis", "train"]
    assert collector.one("train").attributes == {"km.outcome": "taken away"}


@pytest.mark.parametrize("header", ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None])
def test_the_generators_requests_bear_the_trace(header: str | None) -> None:
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("traceparent"))
        return httpx.Response(200, json={"choices": [{"index": 0, "text": "x"}]})

    endpoint = GeneratorEndpoint(url="http://generator.test/v1", model="base")
    with Generator(endpoint, transport=httpx.MockTransport(answer), traceparent=header) as generator:
        generator.complete([Ask(({"role": "user", "content": "Write."},))], max_tokens=4, temperature=0.0)
    assert seen == [header]
