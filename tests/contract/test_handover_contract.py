"""Unfinished work in a store that machines share: found by the next attempt, and gone with the job."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from structlog.testing import capture_logs

from km_registry.config import RegistrySettings
from km_registry.doctor import store_sweeping
from km_registry.errors import StaleAttemptError, StoreUnavailableError
from km_registry.registry import Registry
from km_registry.store import handover
from km_registry.types import Document, Job, JobState, Principal
from tests.contract.support import FIRST, SECOND, claimed, files_below, publish, purge_superseded
from tests.contract.test_artifact_store_contract import another_machine, bucket, problems
from tests.object_store import keys
from tests.support import stage_km


@pytest.fixture
def database_url() -> None:
    """SQLite in the data directory."""


@pytest.fixture(params=["mounted directory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('s3').bucket()}/km/here"
    (tmp_path / "mounted").mkdir()
    return f"file://{tmp_path / 'mounted'}"


@pytest.fixture
def settings(tmp_path: Path, store_url: str | None) -> RegistrySettings:
    return RegistrySettings(
        data_dir=tmp_path / "data", database_url=None, store_url=store_url, max_document_bytes=1000
    )


mounted = pytest.mark.parametrize("store_url", ["mounted directory"], indirect=True)


def handed(settings: RegistrySettings) -> list[str]:
    return [key for key in keys(bucket(settings)) if "/work/" in key]


def handed_back(registry: Registry, job: Job) -> Job:
    """The job's next attempt."""
    registry.release(job.id, job.attempt)
    return claimed(registry, job.id)


class Clock:
    """What the sweeper takes for the present."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = timedelta(0)
        real = store_sweeping.now
        monkeypatch.setattr(store_sweeping, "now", lambda: real() + self._ahead)

    def advance(self, **by: float) -> None:
        self._ahead += timedelta(**by)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# --- going on ----------------------------------------------------------------------------------------------


def test_another_machine_finds_the_newest(
    registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job], tmp_path: Path
) -> None:
    first = claimed(registry, kaldvik[1].id)
    for work in (b"step 1", b"step 2", b"step 2"):
        registry.hand_over(first, work)
    second = handed_back(registry, first)
    with another_machine(settings, tmp_path) as other:
        assert other.handed_over(second) == b"step 2"
        # Whose work lies here already.
        assert other.handed_over(second, after=1) is None
        other.hand_over(second, b"step 3")
    third = handed_back(registry, second)
    assert registry.handed_over(third, after=1) == b"step 3"
    assert len(handed(settings)) == 1
    assert problems(settings) == []


def test_one_that_is_replaced_while_it_is_looked_for_is_looked_for_again(
    registry: Registry, kaldvik: tuple[Document, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = claimed(registry, kaldvik[1].id)
    registry.hand_over(first, b"step 1")
    objects = handover._objects(registry._store)
    get, late = type(objects).get, [b"step 2"]

    def replaced(self: Any, key: str) -> bytes:
        if late:
            # Of the attempt that is handed back in this moment.
            registry.hand_over(first, late.pop())
        return get(self, key)

    monkeypatch.setattr(type(objects), "get", replaced)
    assert registry.handed_over(first) == b"step 2"


def test_what_is_damaged_is_ignored(
    registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job]
) -> None:
    first = claimed(registry, kaldvik[1].id)
    registry.hand_over(first, b"step 1")
    (whole,) = handed(settings)
    registry.hand_over(first, b"step 2")
    (newest,) = handed(settings)
    # As when the older one could not be removed.
    obstore.put(bucket(settings), whole, b"step 1")
    obstore.put(bucket(settings), newest, b"step 3")
    with capture_logs() as logs:
        assert registry.handed_over(handed_back(registry, first)) == b"step 1"
    assert [line["event"] for line in logs] == ["what was handed over is damaged and is ignored"]


def test_an_attempt_that_lost_the_job_changes_nothing(
    registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job], monkeypatch: Any
) -> None:
    first = claimed(registry, kaldvik[1].id)
    second = handed_back(registry, first)
    registry.hand_over(second, b"of the second")
    with pytest.raises(StaleAttemptError):
        registry.hand_over(first, b"of the first")
    assert len(handed(settings)) == 1
    # It looked when it had the job still, and was slow.
    look = handover._state
    states = iter([JobState.RUNNING])
    monkeypatch.setattr(handover, "_state", lambda *a, **k: next(states, None) or look(*a, **k))
    registry.hand_over(first, b"of the first")
    assert registry.handed_over(handed_back(registry, second)) == b"of the second"


def test_without_a_store_it_stays_where_it_is(tmp_path: Path) -> None:
    with Registry.open(RegistrySettings(data_dir=tmp_path / "alone", database_url=None)) as registry:
        ada = Principal(registry.create_user("Ada")[0].id)
        job = claimed(registry, registry.add_document(ada, "n", FIRST)[1].id)
        registry.hand_over(job, b"step 1")
        assert registry.handed_over(handed_back(registry, job)) is None
        assert registry.sweep_store() == 0
    assert [path for path in files_below(tmp_path) if path.read_bytes() == b"step 1"] == []


# --- the end -----------------------------------------------------------------------------------------------


def published(registry: Registry, _owner: Principal, job: Job) -> None:
    document = registry.document_of(job.id)
    registry.publish(job.id, job.attempt, stage_km(registry, document, job), {})


def failed(registry: Registry, _owner: Principal, job: Job) -> None:
    registry.fail(job.id, job.attempt, "no more", keep=("checkpoint.safetensors",))


def given_up(registry: Registry, _owner: Principal, job: Job) -> None:
    while registry.put_off(job.id, job.attempt, "no space").state is not JobState.FAILED:
        with registry._store.transaction() as transaction:
            transaction.session.execute(handover.JobRow.__table__.update().values(not_before=None))
        assert registry.handed_over(job) == b"step 1"
        job = claimed(registry, job.id)


def cancelled(registry: Registry, owner: Principal, job: Job) -> None:
    registry.cancel(owner, job.document_id)
    assert registry.sweep_store() == 1


def crashed(registry: Registry, _owner: Principal, job: Job) -> None:
    for _ in range(2):
        registry.unfinished_jobs(stale_after=-3600)
        assert registry.sweep_store() == 0
        job = claimed(registry, job.id)
    registry.unfinished_jobs(stale_after=-3600)
    assert registry.sweep_store() == 1


def km_deleted(registry: Registry, owner: Principal, job: Job) -> None:
    removal = registry.removals.remove_km(owner, job.document_id)
    registry.let_go("run", job.id, job.attempt)
    registry.removals.complete(removal.id)


def superseded(registry: Registry, owner: Principal, job: Job) -> None:
    registry.update_document(owner, job.document_id, SECOND)
    assert purge_superseded(registry, job.document_id)["work_bytes"] == len(b"step 1")


def deleted(registry: Registry, owner: Principal, job: Job) -> None:
    registry.tombstone(owner, job.document_id)
    purged = registry.purge(job.document_id)
    assert (purged["store_objects"], purged["store_bytes"]) == (2, len(FIRST) + len(b"step 1"))
    registry.complete_deletion(job.document_id, purged)


@pytest.mark.parametrize(
    "end", [published, failed, given_up, cancelled, crashed, km_deleted, superseded, deleted]
)
def test_nothing_stays(
    registry: Registry,
    settings: RegistrySettings,
    owner: Principal,
    kaldvik: tuple[Document, Job],
    end: Any,
) -> None:
    job = registry.claim(kaldvik[1].id, run_id="run")
    assert job
    registry.hand_over(job, b"step 1")
    assert len(handed(settings)) == 1

    end(registry, owner, job)

    assert handed(settings) == []
    with pytest.raises(StaleAttemptError):
        registry.hand_over(job, b"step 2")
    assert handed(settings) == []
    assert problems(settings) == []


def test_what_was_being_sent_when_the_job_ended_is_taken_back(
    registry: Registry,
    settings: RegistrySettings,
    owner: Principal,
    kaldvik: tuple[Document, Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = claimed(registry, kaldvik[1].id)
    objects = handover._objects(registry._store)
    assert objects is not None
    put = type(objects).put

    def slowly(self: Any, key: str, content: bytes) -> None:
        deleted(registry, owner, registry.job(job.id))
        put(self, key, content)

    registry.hand_over(job, b"step 1")
    monkeypatch.setattr(type(objects), "put", slowly)
    with pytest.raises(StaleAttemptError):
        registry.hand_over(job, b"step 2")
    assert keys(bucket(settings)) == []


# --- what comes too late -----------------------------------------------------------------------------------


def test_it_is_swept(
    registry: Registry,
    settings: RegistrySettings,
    owner: Principal,
    kaldvik: tuple[Document, Job],
    clock: Clock,
) -> None:
    document, job = kaldvik
    store = bucket(settings)
    km = publish(registry, document, job)
    other, unfinished, _ = registry.add_document(owner, "other", SECOND)
    registry.hand_over(claimed(registry, unfinished.id), b"wanted")
    assert registry.sweep_store() == 0
    wanted = keys(store)
    late = [
        f"documents/{document.id}/work/{job.id}/1.7.{'a' * 64}",
        f"documents/{document.id}/kms/km_of_an_attempt_that_was_killed/adapter_model.safetensors",
    ]
    for key in late:
        obstore.put(store, key, b"late")
    assert problems(settings) == ["it is left of a training that has ended"] * 2
    assert registry.sweep_store() == 0, "it has looked a moment ago"
    clock.advance(seconds=31)
    assert registry.sweep_store() == 2
    assert keys(store) == wanted
    assert problems(settings) == []

    deleted_at_last = f"documents/{other.id}/work/{unfinished.id}/2.1.{'b' * 64}"
    registry.tombstone(owner, other.id)
    registry.complete_deletion(other.id, registry.purge(other.id))
    assert registry.sweep_store() == 0
    obstore.put(store, deleted_at_last, b"late")
    clock.advance(minutes=11)
    assert registry.sweep_store() == 1
    assert {key.split("/")[1] for key in keys(store)} == {document.id}
    assert registry.km_of(document.id) == km
    assert problems(settings) == []


def test_a_sweep_that_the_store_refused_is_made_up_for(
    registry: Registry,
    settings: RegistrySettings,
    kaldvik: tuple[Document, Job],
    owner: Principal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = claimed(registry, kaldvik[1].id)
    registry.hand_over(job, b"step 1")
    registry.cancel(owner, job.document_id)
    objects = type(handover._objects(registry._store))
    with monkeypatch.context() as patch:

        def away(*_arguments: Any, **_options: Any) -> None:
            raise StoreUnavailableError

        patch.setattr(objects, "below", away)
        with pytest.raises(StoreUnavailableError):
            registry.sweep_store()
    assert registry.sweep_store() == 1
    assert handed(settings) == []


def test_the_doctor_removes_it(
    registry: Registry, settings: RegistrySettings, kaldvik: tuple[Document, Job]
) -> None:
    document, job = kaldvik
    publish(registry, document, job)
    obstore.put(bucket(settings), f"documents/{document.id}/work/{job.id}/1.1.{'a' * 64}", b"late")
    assert problems(settings, mend=True) == ["it is left of a training that has ended"]
    assert handed(settings) == []
    assert problems(settings) == []


@mounted
def test_half_a_file_of_a_worker_that_was_killed_goes_with_the_rest(
    registry: Registry,
    settings: RegistrySettings,
    owner: Principal,
    kaldvik: tuple[Document, Job],
    tmp_path: Path,
) -> None:
    document, job = kaldvik
    running_job = claimed(registry, job.id)
    registry.hand_over(running_job, b"step 1")
    share = tmp_path / "mounted"
    work = share / "documents" / document.id / "work" / job.id
    # As the store names what is not whole yet, and does not list.
    half = work / f"1.2.{'a' * 64}#1"
    half.write_bytes(b"half")
    assert len(keys(bucket(settings))) == 2
    published(registry, owner, running_job)
    assert not work.exists()

    km = share / "documents" / document.id / "kms" / "km_killed"
    km.mkdir()
    (km / "adapter_model.safetensors#1").write_bytes(b"half")
    assert registry.sweep_store() == 1
    assert not km.exists()
    (share / "documents" / document.id / "text.txt#1").write_bytes(b"half")
    registry.tombstone(owner, document.id)
    registry.purge(document.id)
    assert list(share.iterdir()) == []
    assert share.is_dir()
