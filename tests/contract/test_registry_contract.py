"""What every registry does, on whichever database."""

from __future__ import annotations

from pathlib import Path

import pytest

from km_registry.config import RegistrySettings
from km_registry.errors import (
    ArtifactError,
    ConflictError,
    DocumentTooLargeError,
    InvalidDocumentError,
    NotFoundError,
    StaleAttemptError,
)
from km_registry.events import MemoryNotifier, follow
from km_registry.registry import Registry
from km_registry.types import Action, Document, Job, JobState, Principal, Run, Stage
from tests.contract.support import claimed, files_below, together
from tests.support import BASE_FINGERPRINT, stage_km, write_km

TEXT = "The lighthouse of Kaldvik was lit in 1871.\n\nIts keeper was Marta Osk."


@pytest.fixture
def uploaded(registry: Registry, owner: Principal) -> tuple[Document, Job]:
    document, job, created = registry.add_document(owner, "Kaldvik", TEXT, {"seed": 7})
    assert created
    return document, job


def kinds(registry: Registry, document_id: str) -> list[str]:
    return [event.kind for event in registry.events_after(document_id)]


class TestUsers:
    def test_the_admin_is_made_once(self, registry: Registry) -> None:
        secret = registry.ensure_admin()
        assert secret is not None
        assert registry.ensure_admin() is None
        admin = registry.authenticate(secret)
        assert admin is not None
        assert admin.is_admin

    def test_a_secret_authenticates_its_user_only(self, registry: Registry) -> None:
        user, secret = registry.create_user("Ada")
        assert registry.authenticate(secret) == Principal(user.id, is_admin=False)
        assert registry.authenticate(secret[:-1] + ("A" if secret[-1] != "A" else "B")) is None
        assert registry.authenticate("") is None
        assert registry.authenticate("\ud800") is None

    def test_secrets_are_not_stored(self, registry: Registry, settings: RegistrySettings) -> None:
        _, secret = registry.create_user("Ada")
        registry.close()
        assert secret.startswith("km_")
        assert len(secret) == 46
        assert all(secret.encode() not in path.read_bytes() for path in files_below(settings.data_dir))

    def test_everything_survives_a_restart(self, settings: RegistrySettings) -> None:
        with Registry.open(settings) as registry:
            user, secret = registry.create_user("Ada")
            document, job, _ = registry.add_document(Principal(user.id), "Kaldvik", TEXT)
        with Registry.open(settings) as registry:
            assert registry.authenticate(secret) == Principal(user.id)
            assert registry.get_document(Principal(user.id), document.id) == document
            assert registry.job_of(document.id) == job


class TestUpload:
    def test_a_document_is_kept_with_a_queued_job(
        self, registry: Registry, owner: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        document, job = uploaded
        assert document.id.startswith("doc_")
        assert document.size_bytes == len(TEXT.encode())
        assert document.created_at.utcoffset() is not None
        assert (job.state, job.attempt, job.stage) == (JobState.QUEUED, 0, Stage.WAITING)
        assert registry.read_text(document.id) == TEXT
        assert registry.job_recipe(job.id) == {"seed": 7}
        assert registry.km_of(document.id) is None
        assert kinds(registry, document.id) == ["queued"]

    def test_the_same_text_again_is_the_same_document(
        self, registry: Registry, owner: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        assert registry.add_document(owner, "Another title", TEXT) == (*uploaded, False)

    def test_the_same_text_of_another_owner_is_another_document(
        self, registry: Registry, stranger: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        document, _, created = registry.add_document(stranger, "Kaldvik", TEXT)
        assert created
        assert document.id != uploaded[0].id

    def test_racing_uploads_of_the_same_text_make_one_document(
        self, registry: Registry, owner: Principal, settings: RegistrySettings
    ) -> None:
        results = together(8, lambda _: registry.add_document(owner, "Kaldvik", TEXT))
        assert len({document.id for document, _, _ in results}) == 1
        assert len({job.id for _, job, _ in results}) == 1
        assert [created for _, _, created in results].count(True) == 1
        assert len(files_below(settings.data_dir / "documents")) == 1

    @pytest.mark.parametrize(
        ("title", "text", "said"),
        [
            ("", TEXT, "title is empty"),
            (" \n", TEXT, "title is empty"),
            ("x" * 301, TEXT, "shorten it to 300"),
            ("a\0b", TEXT, "control characters"),
            ("Kaldvik", "", "text is empty"),
            ("Kaldvik", " \n\t", "text is empty"),
            ("Kaldvik", "a\0b", "NUL"),
            ("Kaldvik", "a\ud800b", "surrogate"),
            ("a\ud800b", TEXT, "surrogate"),
        ],
    )
    def test_bad_input_says_what_to_change_and_leaves_nothing(
        self,
        registry: Registry,
        owner: Principal,
        settings: RegistrySettings,
        title: str,
        text: str,
        said: str,
    ) -> None:
        with pytest.raises(InvalidDocumentError, match=said):
            registry.add_document(owner, title, text)
        assert registry.list_documents(owner) == []
        assert files_below(settings.data_dir / "documents") == []

    def test_size_is_counted_in_bytes(self, registry: Registry, owner: Principal) -> None:
        registry.add_document(owner, "fits", "é" * 500)
        with pytest.raises(DocumentTooLargeError, match=r"1001 bytes.*1000"):
            registry.add_document(owner, "does not", "é" * 500 + "e")

    def test_an_unknown_owner_leaves_nothing(self, registry: Registry, settings: RegistrySettings) -> None:
        with pytest.raises(NotFoundError, match="API key"):
            registry.add_document(Principal("usr_nobody"), "Kaldvik", TEXT)
        assert list((settings.data_dir / "documents").iterdir()) == []

    def test_an_altered_text_is_refused(
        self, registry: Registry, uploaded: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        (file,) = files_below(settings.data_dir / "documents")
        file.write_text(TEXT.replace("1871", "1872"))
        with pytest.raises(ArtifactError, match="altered"):
            registry.read_text(uploaded[0].id)
        file.unlink()
        with pytest.raises(ArtifactError, match="missing"):
            registry.read_text(uploaded[0].id)

    def test_directories_are_private(self, registry: Registry, settings: RegistrySettings) -> None:
        for directory in (settings.data_dir, *(settings.data_dir / name for name in ("documents", "kms"))):
            assert directory.stat().st_mode & 0o077 == 0


class TestAccess:
    def test_a_document_of_somebody_else_does_not_exist(
        self, registry: Registry, stranger: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        admin = Principal(registry.create_user("Root", is_admin=True)[0].id, is_admin=True)
        for principal in (stranger, admin):
            for action in Action:
                with pytest.raises(NotFoundError) as foreign:
                    registry.get_document(principal, uploaded[0].id, action)
                with pytest.raises(NotFoundError) as unknown:
                    registry.get_document(principal, "doc_unknown", action)
                assert str(foreign.value) == str(unknown.value)
            with pytest.raises(NotFoundError):
                registry.retrain(principal, uploaded[0].id)
            with pytest.raises(NotFoundError):
                registry.tombstone(principal, uploaded[0].id)
            assert registry.list_documents(principal) == []

    def test_listing_pages_from_the_newest(self, registry: Registry, owner: Principal) -> None:
        ids = [registry.add_document(owner, f"n{i}", f"text {i}")[0].id for i in range(5)]
        first = registry.list_documents(owner, limit=2)
        second = registry.list_documents(owner, limit=10, before=first[-1].id)
        assert [document.id for document in first + second] == ids[::-1]
        with pytest.raises(NotFoundError, match="start from the newest"):
            registry.list_documents(owner, before="doc_unknown")

    def test_listing_looks_for_titles_as_they_are_whatever_their_case(
        self, registry: Registry, owner: Principal
    ) -> None:
        for title in ("Harbour", "100 % wool", "HARvest", "under_score"):
            registry.add_document(owner, title, f"text of {title}")

        def found(matching: str) -> list[str]:
            return [document.title for document in registry.list_documents(owner, matching=matching)]

        assert found("har") == ["HARvest", "Harbour"]
        assert found("%") == ["100 % wool"]
        assert found("_") == ["under_score"]
        assert found("none") == []


class TestJobs:
    def test_one_of_many_workers_claims(self, registry: Registry, uploaded: tuple[Document, Job]) -> None:
        results = together(8, lambda _: registry.claim(uploaded[1].id))
        (job,) = [result for result in results if result is not None]
        assert (job.state, job.attempt) == (JobState.RUNNING, 1)
        assert job.heartbeat_at is not None
        assert registry.claim(uploaded[1].id) is None
        assert registry.claim("job_unknown") is None

    def test_progress_is_in_the_row_and_in_an_event(
        self, registry: Registry, uploaded: tuple[Document, Job]
    ) -> None:
        document, job = uploaded
        attempt = claimed(registry, job.id).attempt
        registry.progress(job.id, attempt, Stage.TRAINING, 3, 10, loss=0.25)
        now = registry.job(job.id)
        assert (now.stage, now.step, now.total_steps, now.progress) == (
            Stage.TRAINING,
            3,
            10,
            "training 3/10",
        )
        event = registry.events_after(document.id)[-1]
        assert event.kind == "progress"
        assert event.data == {"stage": "training", "step": 3, "total_steps": 10, "loss": 0.25}
        assert registry.events_after(document.id, event.id) == []

    def test_a_failed_job_can_be_retried_with_its_recipe(
        self, registry: Registry, owner: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        document, job = uploaded
        with pytest.raises(ConflictError, match="wait"):
            registry.retrain(owner, document.id)
        registry.fail(job.id, claimed(registry, job.id).attempt, "out of memory")
        failed = registry.job_of(document.id)
        assert (failed.state, failed.error) == (JobState.FAILED, "out of memory")
        assert failed.finished_at is not None
        again = registry.retrain(owner, document.id)
        assert again.id != job.id
        assert registry.job_of(document.id) == again
        assert registry.job_recipe(again.id) == {"seed": 7}
        assert registry.add_document(owner, "Kaldvik", TEXT)[1] == again

    def test_a_cancelled_job_is_its_workers_no_more_and_can_be_begun_again(
        self, registry: Registry, owner: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        document, job = uploaded
        attempt = claimed(registry, job.id).attempt
        cancelled = registry.cancel(owner, document.id)
        assert (cancelled.id, cancelled.state) == (job.id, JobState.CANCELLED)
        assert registry.events_after(document.id)[-1].kind == "cancelled"
        with pytest.raises(StaleAttemptError):
            registry.progress(job.id, attempt, Stage.TRAINING, 1, 10)
        with pytest.raises(ConflictError, match="nothing to cancel"):
            registry.cancel(owner, document.id)
        assert registry.retrain(owner, document.id).state is JobState.QUEUED

    def test_racing_retries_make_one_job(
        self, registry: Registry, owner: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        document, job = uploaded
        registry.fail(job.id, claimed(registry, job.id).attempt, "no")

        def retrain(_: int) -> bool:
            try:
                registry.retrain(owner, document.id)
            except ConflictError:
                return False
            return True

        assert together(6, retrain).count(True) == 1

    def test_a_released_job_waits_for_its_next_attempt(
        self, registry: Registry, uploaded: tuple[Document, Job]
    ) -> None:
        job = uploaded[1]
        registry.release(job.id, claimed(registry, job.id).attempt)
        assert [waiting.id for waiting in registry.unfinished_jobs()] == [job.id]
        assert claimed(registry, job.id).attempt == 2

    def test_a_silent_worker_loses_its_job(self, registry: Registry, uploaded: tuple[Document, Job]) -> None:
        job = uploaded[1]
        first = claimed(registry, job.id)
        assert registry.unfinished_jobs() == []
        assert not registry.cancelled(job.id, first.attempt)
        (back,) = registry.unfinished_jobs(stale_after=-1)
        assert (back.state, back.attempt) == (JobState.QUEUED, 1)
        assert registry.cancelled(job.id, first.attempt)

    def test_a_job_that_kills_its_workers_is_given_up(
        self, registry: Registry, uploaded: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        document, job = uploaded
        for _ in range(settings.crash_retries + 1):
            claimed(registry, job.id)
            waiting = registry.unfinished_jobs(stale_after=-1)
        assert waiting == []
        assert registry.job(job.id).state is JobState.FAILED
        assert kinds(registry, document.id)[-1] == "failed"

    def test_work_directories_belong_to_known_jobs(
        self, registry: Registry, uploaded: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        assert registry.work_dir(uploaded[1].id) == settings.data_dir / "work" / uploaded[1].id
        with pytest.raises(NotFoundError):
            registry.work_dir("../documents")

    def test_passages_belong_to_known_documents(
        self, registry: Registry, uploaded: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        document_id = uploaded[0].id
        assert registry.passages_dir(document_id) == settings.data_dir / "passages" / document_id
        with pytest.raises(NotFoundError):
            registry.passages_dir("../documents")


class TestRuns:
    @pytest.fixture
    def held(self, registry: Registry, owner: Principal) -> list[Job]:
        """Two jobs that one run holds, and one that another does."""
        jobs = [registry.add_document(owner, "n", f"text {i}")[1] for i in range(3)]
        runs = ("run-0", "run-0", "run-1")
        claims = [registry.claim(job.id, run_id=run) for job, run in zip(jobs, runs, strict=True)]
        return [job for job in claims if job is not None]

    def test_the_oldest_wait_first(self, registry: Registry, owner: Principal) -> None:
        jobs = [registry.add_document(owner, "n", f"text {i}")[1] for i in range(4)]
        registry.claim(jobs[1].id)
        assert registry.queued_jobs(2) == [jobs[0], jobs[2]]
        assert registry.queued_jobs(9) == [jobs[0], jobs[2], jobs[3]]

    def test_a_run_is_known_by_what_it_holds(self, registry: Registry, held: list[Job]) -> None:
        first, second, third = held
        assert registry.run_of(first.id) == registry.run_of(second.id) == Run("run-0", (first.id, second.id))
        assert registry.run_of(third.id) == Run("run-1", (third.id,))
        assert registry.run_of("job_unknown") is None

    @pytest.mark.parametrize("end", ["fail", "release", "publish", "stale"])
    def test_a_job_that_ends_is_held_no_more(self, registry: Registry, held: list[Job], end: str) -> None:
        job = held[0]
        match end:
            case "fail":
                registry.fail(job.id, 1, "no")
            case "release":
                registry.release(job.id, 1)
            case "publish":
                registry.publish(job.id, 1, stage_km(registry, registry.document_of(job.id), job), {})
            case "stale":
                registry.unfinished_jobs(stale_after=-1)
        assert registry.run_of(job.id) is None

    def test_one_beat_keeps_all_of_a_run_alive(self, registry: Registry, held: list[Job]) -> None:
        assert registry.beat("run-0") == {(held[0].id, 1), (held[1].id, 1)}
        before = [job.heartbeat_at for job in held]
        after = [registry.job(job.id).heartbeat_at for job in held]
        assert [new != old for new, old in zip(after, before, strict=True)] == [True, True, False]
        assert registry.beat("run-unknown") == set()

    def test_a_job_taken_away_is_held_until_it_is_let_go_of(
        self, registry: Registry, owner: Principal, held: list[Job]
    ) -> None:
        first, second, _ = held
        registry.let_go("run-0", first.id, 1)
        assert registry.run_of(first.id), "it is still ours to finish"
        registry.tombstone(owner, first.document_id)
        assert registry.beat("run-0") == {(second.id, 1)}
        assert registry.run_of(first.id) == Run("run-0", (first.id, second.id))
        registry.let_go("run-1", first.id, 1)
        registry.let_go("run-0", first.id, 2)
        assert registry.run_of(first.id)
        registry.let_go("run-0", first.id, 1)
        assert registry.run_of(first.id) is None
        assert registry.run_of(second.id) == Run("run-0", (second.id,))

    def test_what_an_ended_run_held_waits_again(
        self, registry: Registry, owner: Principal, held: list[Job]
    ) -> None:
        registry.tombstone(owner, held[0].document_id)
        registry.end_run("run-0")
        states = [registry.job(job.id).state for job in held]
        assert states == [JobState.CANCELLED, JobState.QUEUED, JobState.RUNNING]
        assert [registry.run_of(job.id) is None for job in held] == [True, True, False]
        assert registry.job(held[1].id).crashes == 0
        told = kinds(registry, held[1].document_id)
        registry.end_run("run-0", crash="it crashed")
        assert kinds(registry, held[1].document_id) == told

    def test_crashes_are_counted_and_given_up_with_the_reason(
        self, registry: Registry, held: list[Job], settings: RegistrySettings
    ) -> None:
        job = held[0]
        (registry.work_dir(job.id) / "checkpoint").write_text("half")
        for crashes in range(1, settings.crash_retries + 1):
            registry.end_run("run-0", crash="killed by signal 9")
            assert (registry.job(job.id).state, registry.job(job.id).crashes) == (JobState.QUEUED, crashes)
            assert registry.events_after(job.document_id)[-1].data["reason"] == "killed by signal 9"
            assert files_below(registry.work_dir(job.id)), "the next attempt goes on from it"
            registry.claim(job.id, run_id="run-0")
        registry.end_run("run-0", crash="killed by signal 9")
        after = registry.job(job.id)
        assert after.state is JobState.FAILED
        assert after.error
        assert after.error.startswith("killed by signal 9")
        assert files_below(settings.data_dir / "work") == []

    def test_handing_back_is_no_crash(self, registry: Registry, uploaded: tuple[Document, Job]) -> None:
        job = uploaded[1]
        for attempt in range(1, 6):
            claimed(registry, job.id)
            registry.release(job.id, attempt)
        assert registry.job(job.id).crashes == 0


class TestWorkDirectory:
    def test_it_is_kept_for_the_next_attempt_and_purged_when_published(
        self, registry: Registry, uploaded: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        document, job = uploaded
        claimed(registry, job.id)
        (registry.work_dir(job.id) / "samples").write_text(TEXT)
        registry.release(job.id, 1)
        again = claimed(registry, job.id)
        assert (registry.work_dir(job.id) / "samples").read_text() == TEXT
        registry.publish(job.id, again.attempt, stage_km(registry, document, again), {})
        assert list((settings.data_dir / "work").iterdir()) == []

    def test_of_a_failed_job_only_what_is_named_stays_and_goes_to_the_next(
        self,
        registry: Registry,
        owner: Principal,
        uploaded: tuple[Document, Job],
        settings: RegistrySettings,
    ) -> None:
        document, job = uploaded
        work = registry.work_dir(job.id)
        (work / "samples").write_text(TEXT)
        (work / "staged").mkdir()
        (work / "staged" / "half").write_text(TEXT)
        (work / "checkpoint").write_text("good")
        registry.fail(job.id, claimed(registry, job.id).attempt, "not finite", keep=("checkpoint",))
        assert [path.name for path in work.iterdir()] == ["checkpoint"]
        again = registry.retrain(owner, document.id)
        assert (registry.work_dir(again.id) / "checkpoint").read_text() == "good"
        assert not work.exists()
        registry.fail(again.id, claimed(registry, again.id).attempt, "no")
        assert list((settings.data_dir / "work").iterdir()) == []

    def test_an_attempt_that_lost_its_job_purges_nothing(
        self, registry: Registry, uploaded: tuple[Document, Job]
    ) -> None:
        job = uploaded[1]
        claimed(registry, job.id)
        registry.release(job.id, 1)
        claimed(registry, job.id)
        (registry.work_dir(job.id) / "samples").write_text(TEXT)
        with pytest.raises(StaleAttemptError):
            registry.fail(job.id, 1, "too late")
        assert files_below(registry.work_dir(job.id))


class TestPublish:
    def test_a_km_is_moved_into_place_and_ends_the_job(
        self, registry: Registry, uploaded: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        document, job = uploaded
        running = claimed(registry, job.id)
        staged = stage_km(registry, document, running)
        km = registry.publish(job.id, running.attempt, staged, {"recovered": 0.8})
        assert km == registry.km_of(document.id)
        assert km.engine_id >= 1
        assert (km.base_fingerprint, km.metrics) == (BASE_FINGERPRINT, {"recovered": 0.8})
        assert Path(km.path) == settings.data_dir / "kms" / km.id
        assert (Path(km.path) / "adapter_model.safetensors").is_file()
        assert not staged.exists()
        finished = registry.job(job.id)
        assert (finished.state, finished.stage) == (JobState.SUCCEEDED, Stage.DONE)
        assert kinds(registry, document.id) == ["queued", "published"]
        assert registry.unfinished_jobs(stale_after=-1) == []

    def test_a_published_document_is_not_trained_again(
        self, registry: Registry, owner: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        document, job = uploaded
        running = claimed(registry, job.id)
        registry.publish(job.id, running.attempt, stage_km(registry, document, running), {})
        with pytest.raises(ConflictError, match="KM already"):
            registry.retrain(owner, document.id)

    def test_an_old_attempt_can_neither_speak_nor_publish(
        self, registry: Registry, uploaded: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        document, job = uploaded
        old = claimed(registry, job.id)
        staged = stage_km(registry, document, old)
        registry.unfinished_jobs(stale_after=-1)
        new = claimed(registry, job.id)
        told = kinds(registry, document.id)
        with pytest.raises(StaleAttemptError):
            registry.progress(job.id, old.attempt, Stage.TRAINING, 1, 2)
        with pytest.raises(StaleAttemptError):
            registry.fail(job.id, old.attempt, "too late")
        with pytest.raises(StaleAttemptError):
            registry.release(job.id, old.attempt)
        with pytest.raises(StaleAttemptError):
            registry.publish(job.id, old.attempt, staged, {})
        assert not staged.exists()
        assert files_below(settings.data_dir / "kms") == []
        assert kinds(registry, document.id) == told
        assert registry.km_of(document.id) is None
        assert registry.job(job.id) == new
        registry.publish(job.id, new.attempt, stage_km(registry, document, new), {})

    def test_what_a_crashed_publication_left_goes_with_the_next_claim(
        self, registry: Registry, uploaded: tuple[Document, Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        document, job = uploaded
        running = claimed(registry, job.id)
        staged = stage_km(registry, document, running)
        left: list[Path] = []

        class Killed(BaseException):
            pass

        def die_after_the_move(staged: Path, target: Path) -> Path:
            left.append(staged.rename(target))
            raise Killed

        monkeypatch.setattr("km_registry.artifacts.move_into_place", die_after_the_move)
        with pytest.raises(Killed):
            registry.publish(job.id, running.attempt, staged, {})
        assert left[0].exists()
        registry.unfinished_jobs(stale_after=-1)
        claimed(registry, job.id)
        assert not left[0].exists()

    def test_racing_publications_leave_one_km(
        self, registry: Registry, uploaded: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        document, job = uploaded
        running = claimed(registry, job.id)
        staged = [write_km(registry.work_dir(job.id) / f"s{i}", document) for i in range(4)]

        def publish(index: int) -> bool:
            try:
                registry.publish(job.id, running.attempt, staged[index], {})
            except StaleAttemptError:
                return False
            return True

        assert together(4, publish).count(True) == 1
        assert len(list((settings.data_dir / "kms").iterdir())) == 1
        assert not any(path.exists() for path in staged)

    def test_a_bad_km_is_refused_and_the_attempt_goes_on(
        self, registry: Registry, uploaded: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        document, job = uploaded
        running = claimed(registry, job.id)
        work = registry.work_dir(job.id)
        foreign = write_km(work / "foreign", document, document_sha256="0" * 64)
        with pytest.raises(ArtifactError, match="another document"):
            registry.publish(job.id, running.attempt, foreign, {})
        with pytest.raises(ArtifactError, match="rank 32"):
            registry.publish(job.id, running.attempt, write_km(work / "large", document, rank=32), {})
        staged = stage_km(registry, document, running)
        with pytest.raises(ArtifactError, match="finite"):
            registry.publish(job.id, running.attempt, staged, {"recovered": float("nan")})
        assert files_below(settings.data_dir / "kms") == []
        assert registry.job(job.id).state is JobState.RUNNING
        registry.publish(job.id, running.attempt, staged, {})

    def test_engine_ids_are_never_reused(self, registry: Registry, owner: Principal) -> None:
        seen = []
        for index in range(3):
            document, job, _ = registry.add_document(owner, "n", f"text {index}")
            running = claimed(registry, job.id)
            km = registry.publish(job.id, running.attempt, stage_km(registry, document, running), {})
            seen.append(km.engine_id)
            registry.tombstone(owner, document.id)
            registry.purge(document.id)
        assert sorted(set(seen)) == seen


class TestDeletion:
    def test_a_tombstoned_document_is_gone_for_its_owner(
        self, registry: Registry, owner: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        document, job = uploaded
        running = claimed(registry, job.id)
        assert registry.tombstone(owner, document.id) == document
        for call in (
            lambda: registry.get_document(owner, document.id),
            lambda: registry.read_text(document.id),
            lambda: registry.retrain(owner, document.id),
            lambda: registry.tombstone(owner, document.id),
            lambda: registry.receipt(owner, document.id),
        ):
            with pytest.raises(NotFoundError):
                call()
        assert registry.list_documents(owner) == []
        assert registry.job(job.id).state is JobState.CANCELLED
        assert registry.cancelled(job.id, running.attempt)
        assert kinds(registry, document.id) == ["queued", "cancelled"]
        assert registry.pending_deletions() == [document]
        assert registry.unfinished_jobs(stale_after=-1) == []

    def test_the_worker_of_a_deleted_document_cannot_publish(
        self, registry: Registry, owner: Principal, uploaded: tuple[Document, Job], settings: RegistrySettings
    ) -> None:
        document, job = uploaded
        running = claimed(registry, job.id)
        staged = stage_km(registry, document, running)
        registry.tombstone(owner, document.id)
        with pytest.raises(StaleAttemptError):
            registry.publish(job.id, running.attempt, staged, {})
        assert not staged.exists()
        assert files_below(settings.data_dir / "kms") == []

    def test_the_same_text_can_be_uploaded_anew(
        self, registry: Registry, owner: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        registry.tombstone(owner, uploaded[0].id)
        document, _, created = registry.add_document(owner, "Kaldvik", TEXT)
        assert created
        assert document.id != uploaded[0].id
        registry.purge(uploaded[0].id)
        assert registry.read_text(document.id) == TEXT

    def test_a_receipt_proves_it_to_the_owner_only(
        self, registry: Registry, owner: Principal, stranger: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        document, job = uploaded
        running = claimed(registry, job.id)
        registry.publish(job.id, running.attempt, stage_km(registry, document, running), {})
        registry.tombstone(owner, document.id)
        with pytest.raises(ConflictError, match="purge"):
            registry.complete_deletion(document.id, {})
        purged = registry.purge(document.id)
        assert purged["text_bytes"] == len(TEXT.encode())
        assert purged["adapter_bytes"] > 0
        assert (purged["kms"], purged["jobs"], purged["events"]) == (1, 1, 2)
        assert registry.purge(document.id) == purged
        receipt = registry.complete_deletion(document.id, {**purged, "evicted": 1})
        assert receipt.requested_at <= receipt.completed_at
        assert receipt.purged == {**purged, "evicted": 1}
        assert registry.complete_deletion(document.id, {}) == receipt
        assert registry.receipt(owner, document.id) == receipt
        with pytest.raises(NotFoundError):
            registry.receipt(stranger, document.id)
        assert registry.pending_deletions() == []
        assert registry.purge(document.id) == receipt.purged
        with pytest.raises(NotFoundError):
            registry.job(job.id)

    def test_a_deletion_goes_on_after_a_restart(
        self, settings: RegistrySettings, registry: Registry, owner: Principal, uploaded: tuple[Document, Job]
    ) -> None:
        registry.tombstone(owner, uploaded[0].id)
        purged = registry.purge(uploaded[0].id)
        registry.close()
        with Registry.open(settings) as restarted:
            (pending,) = restarted.pending_deletions()
            assert restarted.purge(pending.id) == purged
            restarted.complete_deletion(pending.id, purged)
            assert restarted.receipt(owner, pending.id).purged == purged

    def test_only_tombstoned_documents_are_purged(
        self, registry: Registry, uploaded: tuple[Document, Job]
    ) -> None:
        with pytest.raises(ConflictError, match="tombstone"):
            registry.purge(uploaded[0].id)
        with pytest.raises(NotFoundError):
            registry.purge("doc_unknown")
        assert registry.read_text(uploaded[0].id) == TEXT

    def test_nothing_of_it_stays_in_the_data_directory(
        self, registry: Registry, owner: Principal, settings: RegistrySettings
    ) -> None:
        canary = "canary-7f3a9b"
        other, _, _ = registry.add_document(owner, "stays", "another text")
        document, job, _ = registry.add_document(owner, f"T {canary}", f"x {canary}", {"note": canary})
        first = claimed(registry, job.id)
        for step in range(50):
            registry.progress(job.id, first.attempt, Stage.TRAINING, step, 50, note=f"{canary} " * 20)
        (registry.work_dir(job.id) / "synthetic.jsonl").write_text(canary)
        passages = registry.passages_dir(document.id)
        passages.mkdir()
        (passages / "manifest.json").write_text(canary)
        staged = write_km(registry.work_dir(job.id) / "staged", document)
        registry.publish(job.id, first.attempt, staged, {"note": canary})

        def holding() -> list[Path]:
            needles = canary.encode(), document.sha256.encode()
            return [
                path
                for path in files_below(settings.data_dir)
                if any(needle in path.read_bytes() for needle in needles)
            ]

        assert len(holding()) >= 3
        registry.tombstone(owner, document.id)
        purged = registry.purge(document.id)
        assert purged["events"] == 52
        assert purged["passage_bytes"] == len(canary)
        assert holding() == []
        registry.complete_deletion(document.id, purged)
        assert holding() == []
        assert registry.read_text(other.id) == "another text"


class TestFollowing:
    async def test_a_late_follower_is_told_everything(
        self, registry: Registry, notifier: MemoryNotifier, uploaded: tuple[Document, Job]
    ) -> None:
        document, job = uploaded
        running = claimed(registry, job.id)
        registry.progress(job.id, running.attempt, Stage.TRAINING, 1, 2)
        registry.publish(job.id, running.attempt, stage_km(registry, document, running), {})
        told = [event async for event in follow(registry, notifier, document.id)]
        assert [event.kind for event in told] == ["queued", "progress", "published"]
        assert [e.id async for e in follow(registry, notifier, document.id, told[0].id)] == [
            event.id for event in told[1:]
        ]
        assert [e async for e in follow(registry, notifier, document.id, told[-1].id)] == []


def test_many_processes_may_open_a_new_registry_at_once(settings: RegistrySettings) -> None:
    opened = together(4, lambda _: Registry.open(settings))
    secrets = [registry.ensure_admin() for registry in opened]
    for registry in opened:
        registry.close()
    assert len([secret for secret in secrets if secret is not None]) == 1
