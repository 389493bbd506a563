"""Attempts that one process holds: one heartbeat, and nobody's trouble is another's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from km_registry.errors import KMError, StaleAttemptError, StoreUnavailableError
from km_registry.registry import Registry
from km_registry.types import Job, JobState, Principal
from tests.support import stage_km
from trainer_worker import attempts as module
from trainer_worker.attempt import Attempt
from trainer_worker.attempts import Attempts


@pytest.fixture(autouse=True)
def _nobody_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that lost all its jobs ends its process: here that is the tests' own, and it would end them as if
    all had passed. Set first, so that it is undone after the heart has stopped."""
    monkeypatch.setattr(module.os, "_exit", lambda _code: None)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)


@pytest.fixture
def upload(registry: Registry, owner: Principal) -> Callable[[str], Job]:
    """Queues a job."""
    return lambda text: registry.add_document(owner, "Title", text)[1]


@pytest.fixture
def attempts(registry: Registry) -> Iterator[Attempts]:
    """Attempts of one run, whose heart beats."""
    with Attempts(registry, "run-0") as made:
        yield made


def claimed(attempts: Attempts, job: Job) -> Attempt:
    attempt = attempts.claim(job.id)
    assert attempt
    return attempt


def until_lost(attempt: Attempt) -> threading.Event:
    lost = threading.Event()
    attempt._when_lost.append(lost.set)
    return lost


def anything(_job: Job) -> bool:
    return True


# --- claiming ----------------------------------------------------------------------------------------------


def test_a_job_is_claimed_for_the_run(registry: Registry, attempts: Attempts, upload: Any) -> None:
    job = upload("one")
    attempt = claimed(attempts, job)

    run = registry.run_of(job.id)
    assert run
    assert (run.id, run.job_ids) == ("run-0", (job.id,))
    assert attempts.held() == [attempt]
    assert attempts.claim(job.id) is None
    assert len(attempts) == 1


def test_what_waits_is_claimed_oldest_first_up_to_the_limit(attempts: Attempts, upload: Any) -> None:
    first, second, third, fourth = (upload(f"text {number}") for number in range(4))
    claimed(attempts, third)

    more = attempts.claim_more(3, anything)

    assert [attempt.job.id for attempt in more] == [first.id, second.id]
    assert [attempt.job.id for attempt in attempts.held()] == [third.id, first.id, second.id]
    assert attempts.claim_more(3, anything) == []
    assert [one.job.id for one in attempts.claim_more(4, anything)] == [fourth.id]


def test_the_first_that_does_not_fit_is_not_overtaken(attempts: Attempts, upload: Any) -> None:
    jobs = [upload(f"text {number}") for number in range(3)]

    more = attempts.claim_more(4, lambda job: job.id != jobs[1].id)

    assert [attempt.job.id for attempt in more] == [jobs[0].id]


def test_what_idle_workers_will_take_is_left_to_them(attempts: Attempts, upload: Any) -> None:
    jobs = [upload(f"text {number}") for number in range(3)]

    assert [one.job.id for one in attempts.claim_more(2, anything, leave=2)] == [jobs[2].id]


def test_one_that_crashed_is_trained_alone(registry: Registry, attempts: Attempts, upload: Any) -> None:
    crashed, other = upload("one"), upload("two")
    registry.claim(crashed.id, run_id="run-before")
    registry.end_run("run-before", crash="it crashed")

    claimed(attempts, other)
    assert attempts.claim_more(4, anything) == []
    attempts.release()

    claimed(attempts, crashed)
    assert attempts.claim_more(4, anything) == []


# --- ending ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KMError("the generator is away"), "the generator is away"),
        (RuntimeError("shapes differ"), "RuntimeError: shapes differ"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_a_failure_is_one_attempts_own_and_says_why(
    registry: Registry, attempts: Attempts, upload: Any, error: Exception, reason: str
) -> None:
    first, second = claimed(attempts, upload("one")), claimed(attempts, upload("two"))

    with attempts.ending(first):
        raise error

    after = registry.job(first.job.id)
    assert (after.state, after.error and after.error[: len(reason)]) == (JobState.FAILED, reason)
    assert after.retries == 0
    assert registry.run_of(first.job.id) is None
    assert attempts.held() == [second]
    assert registry.job(second.job.id).state is JobState.RUNNING
    assert registry.events_after(first.job.document_id)[-1].kind == "failed"


def test_a_failure_leaves_only_what_a_retry_can_use(
    registry: Registry, attempts: Attempts, upload: Any, owner: Principal
) -> None:
    attempt = claimed(attempts, upload("one"))
    work = registry.work_dir(attempt.job.id)
    for name in ("kept", "samples"):
        (work / name).write_text(name)

    with attempts.ending(attempt, keep=("kept",)):
        raise KMError("no")

    assert [path.name for path in work.iterdir()] == ["kept"]
    again = registry.retrain(owner, attempt.job.document_id)
    assert [path.name for path in registry.work_dir(again.id).iterdir()] == ["kept"]
    assert not work.exists()


@pytest.mark.parametrize("error", [StaleAttemptError(), RuntimeError("its files were purged")])
def test_one_that_was_taken_away_is_not_failed(
    registry: Registry, attempts: Attempts, upload: Any, owner: Principal, error: Exception
) -> None:
    attempt, other = claimed(attempts, upload("one")), claimed(attempts, upload("two"))
    lost = until_lost(attempt)
    registry.tombstone(owner, attempt.job.document_id)
    assert lost.wait(10)

    with attempts.ending(attempt):
        raise error

    assert registry.job(attempt.job.id).state is JobState.CANCELLED
    assert registry.run_of(attempt.job.id) is None
    assert attempts.held() == [other]


def test_an_interruption_is_nobodys_failure(registry: Registry, attempts: Attempts, upload: Any) -> None:
    attempt = claimed(attempts, upload("one"))

    with pytest.raises(KeyboardInterrupt), attempts.ending(attempt):
        raise KeyboardInterrupt

    assert registry.job(attempt.job.id).state is JobState.RUNNING
    assert attempts.held() == [attempt]


def test_releasing_hands_everything_back(
    registry: Registry, attempts: Attempts, upload: Any, owner: Principal
) -> None:
    first, second = claimed(attempts, upload("one")), claimed(attempts, upload("two"))
    registry.tombstone(owner, first.job.document_id)

    attempts.release()

    assert registry.job(first.job.id).state is JobState.CANCELLED
    assert registry.job(second.job.id).state is JobState.QUEUED
    assert attempts.held() == []
    assert registry.run_of(first.job.id) is registry.run_of(second.job.id) is None


def test_a_crash_that_may_be_anybodys_counts_for_all(
    registry: Registry, attempts: Attempts, upload: Any
) -> None:
    jobs = [claimed(attempts, upload(text)).job for text in ("one", "two")]

    attempts.crash("the step failed")

    assert [(registry.job(job.id).state, registry.job(job.id).crashes) for job in jobs] == [
        (JobState.QUEUED, 1)
    ] * 2
    assert attempts.held() == []


def test_the_next_attempt_is_not_forgotten_with_the_one_before(
    registry: Registry, attempts: Attempts, upload: Any
) -> None:
    before = claimed(attempts, upload("one"))
    registry.unfinished_jobs(stale_after=-1)
    after = claimed(attempts, before.job)

    with attempts.ending(before):
        raise StaleAttemptError

    assert attempts.held() == [after]
    assert registry.run_of(after.job.id)


# --- the heart ---------------------------------------------------------------------------------------------


def test_every_row_hears_the_heart(registry: Registry, upload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = threading.Semaphore(0)
    beat = Registry.beat

    def counted(self: Registry, run_id: str) -> Any:
        owned = beat(self, run_id)
        beats.release()
        return owned

    monkeypatch.setattr(Registry, "beat", counted)
    with Attempts(registry, "run-0") as attempts:
        jobs = [claimed(attempts, upload(text)).job for text in ("one", "two")]
        while beats.acquire(blocking=False):
            pass
        # The first may have begun before both were claimed.
        assert all(beats.acquire(timeout=10) for _ in range(2))

    for job in jobs:
        after = registry.job(job.id).heartbeat_at
        assert after
        assert job.heartbeat_at
        assert after > job.heartbeat_at


def test_one_taken_away_is_let_go_of_while_the_others_stay(
    registry: Registry, attempts: Attempts, upload: Any, owner: Principal
) -> None:
    first, second = claimed(attempts, upload("one")), claimed(attempts, upload("two"))
    let_go = threading.Event()
    told, registry.let_go = registry.let_go, lambda *of: (told(*of), let_go.set())  # type: ignore[method-assign]

    registry.tombstone(owner, first.job.document_id)

    assert let_go.wait(10)
    assert registry.run_of(first.job.id) is None
    with pytest.raises(StaleAttemptError, match=first.job.id):
        first.check()
    second.check()
    assert registry.run_of(second.job.id)


def test_files_are_not_let_go_of_while_they_are_written(
    registry: Registry, attempts: Attempts, upload: Any, owner: Principal
) -> None:
    # A second one, so that this process is not the lost one's alone.
    attempt, _ = claimed(attempts, upload("one")), claimed(attempts, upload("two"))
    lost = until_lost(attempt)
    let_go = threading.Event()
    told, registry.let_go = registry.let_go, lambda *of: (told(*of), let_go.set())  # type: ignore[method-assign]

    with attempt.writing():
        registry.tombstone(owner, attempt.job.document_id)
        assert lost.wait(10)
        assert registry.run_of(attempt.job.id)
        assert not let_go.is_set()

    assert let_go.wait(10)
    assert registry.run_of(attempt.job.id) is None
    with pytest.raises(StaleAttemptError), attempt.writing():
        pytest.fail("wrote")


def test_nor_while_something_of_it_is_sent(
    registry: Registry, attempts: Attempts, upload: Any, owner: Principal
) -> None:
    attempt, _ = claimed(attempts, upload("one")), claimed(attempts, upload("two"))
    lost = until_lost(attempt)
    let_go = threading.Event()
    told, registry.let_go = registry.let_go, lambda *of: (told(*of), let_go.set())  # type: ignore[method-assign]

    with attempt.sending():
        # Meanwhile the training goes on, and ends when it is told.
        with attempt.writing():
            registry.tombstone(owner, attempt.job.document_id)
        assert lost.wait(10)
        with attempts.ending(attempt):
            attempt.check()
        assert attempt not in attempts.held()
        assert registry.run_of(attempt.job.id)
        assert not let_go.is_set()

    assert let_go.wait(10)
    assert registry.run_of(attempt.job.id) is None
    with pytest.raises(StaleAttemptError), attempt.sending():
        pytest.fail("sent")


def test_whoever_waits_is_told(registry: Registry, attempts: Attempts, upload: Any, owner: Principal) -> None:
    attempt, _ = claimed(attempts, upload("one")), claimed(attempts, upload("two"))
    told = threading.Event()

    with attempt.when_lost(told.set):
        registry.tombstone(owner, attempt.job.document_id)
        assert told.wait(10)
    with pytest.raises(StaleAttemptError), attempt.when_lost(told.set):
        pytest.fail("waited")


def test_a_process_that_has_nothing_left_leaves(
    registry: Registry, attempts: Attempts, upload: Any, owner: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()
    codes: set[int] = set()

    def leave(code: int) -> None:
        codes.add(code)
        left.set()

    monkeypatch.setattr(module.os, "_exit", leave)
    attempt = claimed(attempts, upload("one"))
    registry.tombstone(owner, attempt.job.document_id)

    assert left.wait(10)
    assert codes == {0}


def test_a_process_that_ended_its_last_job_itself_is_not_cut_off(
    registry: Registry, attempts: Attempts, upload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "_exit", lambda _code: pytest.fail("cut off"))
    attempt = claimed(attempts, upload("one"))
    beats = threading.Semaphore(0)
    beat = registry.beat

    def counted(run_id: str) -> Any:
        owned = beat(run_id)
        beats.release()
        return owned

    registry.beat = counted  # type: ignore[method-assign]
    document = registry.document_of(attempt.job.id)
    registry.publish(attempt.job.id, 1, stage_km(registry, document, attempt.job), {})
    attempts.finished(attempt)

    assert all(beats.acquire(timeout=10) for _ in range(4))


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (OSError(28, "No space left on device"), {"kept"}),
        (OperationalError("select", {}, Exception("gone")), {"kept"}),
        (StoreUnavailableError(), {"kept", "half"}),
    ],
)
def test_what_may_pass_is_tried_again_later(
    registry: Registry, attempts: Attempts, upload: Any, error: Exception, stays: set[str]
) -> None:
    first, second = claimed(attempts, upload("one")), claimed(attempts, upload("two"))
    (registry.work_dir(first.job.id) / "kept").write_text("x")
    (registry.work_dir(first.job.id) / "half").write_text("x")

    with attempts.ending(first, keep=["kept"]):
        raise error

    after = registry.job(first.job.id)
    assert (after.state, after.retries) == (JobState.QUEUED, 1)
    assert after.not_before is not None
    assert after.error
    assert {path.name for path in registry.work_dir(first.job.id).iterdir()} == stays
    assert registry.run_of(first.job.id) is None
    assert attempts.held() == [second]
    assert attempts.claim(first.job.id) is None


def test_the_next_is_whose_turn_it_is(registry: Registry, attempts: Attempts, upload: Any) -> None:
    first, _ = upload("one"), upload("two")
    bob = Principal(registry.create_user("Bob")[0].id)
    _, of_bob, _ = registry.add_document(bob, "n", "three")
    taken = [attempts.claim_next(first.id) for _ in range(3)]
    assert [attempt.job.id for attempt in taken if attempt][:2] == [first.id, of_bob.id]
    assert attempts.claim_next(first.id) is None
