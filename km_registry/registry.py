"""The registry: one facade over records and files. Synchronous and thread-safe.

Methods that take a principal ask `access.may`; the others are for the server and its workers. What is unknown
and what is not allowed is the same NotFoundError.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from km_registry.config import RegistrySettings
from km_registry.doctor.store_sweeping import StoreSweeper
from km_registry.doctor.sweeping import Sweeper
from km_registry.events import Notifier, NullNotifier
from km_registry.gateways import Gateways
from km_registry.installation import Installation
from km_registry.ke_records import KERecords
from km_registry.people import People
from km_registry.removing import Removals
from km_registry.store import (
    deletion,
    documents,
    handover,
    holding,
    jobs,
    keys,
    measures,
    publishing,
    recovery,
    runs,
    users,
    versions,
    waiting,
)
from km_registry.store.measures import TrainingMeasures
from km_registry.store.store import Store
from km_registry.types import (
    KM,
    Action,
    Document,
    DocumentVersion,
    Event,
    Job,
    JobState,
    Principal,
    Priority,
    Receipt,
    Run,
    Stage,
    Superseded,
    Training,
    User,
)


class Registry:
    """Users, documents, KMs, jobs, events and receipts of one data directory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        #: The KEs, and where their composites with KMs lie.
        self.kes = KERecords(store)
        #: Users, groups, keys, grants and the audit log.
        self.people = People(store)
        #: Removal of KMs alone, of former versions, and of users.
        self.removals = Removals(store)
        #: Whether database, data directory and shared store belong together.
        self.installation = Installation(store)
        #: The gateways that serve from this database.
        self.gateways = Gateways(store)
        self._sweeper = Sweeper(store)
        self._store_sweeper = StoreSweeper(store)

    @classmethod
    def open(cls, settings: RegistrySettings, notifier: Notifier | None = None) -> Self:
        """Open the registry, making directories and bringing the schema up to date as needed."""
        return cls(Store.open(settings, notifier or NullNotifier()))

    def close(self) -> None:
        """Close the database. Idempotent."""
        self._store.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Users

    def ensure_admin(self) -> str | None:
        """On the first start, create the administrator and return their secret; later None."""
        return users.ensure_admin(self._store)

    def create_user(self, name: str, *, is_admin: bool = False) -> tuple[User, str]:
        """A new user and their API key's secret, of which only the SHA-256 is kept."""
        return users.create_user(self._store, None, name, is_admin=is_admin)

    def authenticate(self, secret: str) -> Principal | None:
        """The principal whose secret this is."""
        return keys.authenticate(self._store, secret)

    # Documents

    def add_document(
        self, principal: Principal, title: str, text: str, recipe: dict[str, Any] | None = None
    ) -> tuple[Document, Job, bool]:
        """Take a document in: the document, its job, and whether they are new.

        The same text of the same owner gives the document there is. InvalidDocumentError and
        DocumentTooLargeError say what to change; then, as after any failure, nothing is kept.
        """
        return documents.add(self._store, principal, title, text, recipe or {})

    def get_document(self, principal: Principal, document_id: str, action: Action = Action.READ) -> Document:
        """The document, if the principal may do this with it. Who asks it notes so: `people.note_asked`."""
        return documents.get(self._store, principal, document_id, action)

    def list_documents(
        self,
        principal: Principal,
        *,
        limit: int = 100,
        before: str | None = None,
        matching: str | None = None,
    ) -> list[Document]:
        """The documents that the principal may read, newest first; `before` is the page before's last id.

        With `matching` those whose titles hold it, whatever its case.
        """
        return documents.list_visible(self._store, principal, limit, before, matching)

    def update_document(
        self,
        principal: Principal,
        document_id: str,
        text: str,
        *,
        title: str | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> tuple[Document, Job, bool]:
        """Give the document a new version: the document, its job, and whether they are new.

        The document's unfinished job is cancelled. The KM so far answers until the new version's is
        published; what is superseded stays until it is purged. The same text and title as now change nothing;
        without a title it stays the same. InvalidDocumentError and DocumentTooLargeError say what to change;
        ConflictError when another document of the owner has this text.
        """
        return versions.change(self._store, principal, document_id, title, text, recipe or {})

    def versions_of(self, document_id: str) -> list[DocumentVersion]:
        """The document's versions, newest first."""
        return versions.versions_of(self._store, document_id)

    def read_text(self, document_id: str, version: int | None = None) -> str:
        """The text of the document's newest version, or of the named one while that is kept.

        ArtifactError when its file is missing or altered.
        """
        return documents.read_text(self._store, document_id, version)

    def job_of(self, document_id: str) -> Job:
        """The document's latest job, also of a tombstoned one."""
        return documents.job_of(self._store, document_id)

    def km_of(self, document_id: str) -> KM | None:
        """The KM that answers for the document: of its newest version that has one."""
        return documents.km_of(self._store, document_id)

    def all_kms_of(self, document_id: str) -> list[KM]:
        """Every KM of the document that an engine may hold, also of a tombstoned one, oldest first."""
        return documents.all_kms_of(self._store, document_id)

    def kms_of(self, principal: Principal) -> list[KM]:
        """The KM that answers for every document that the principal may ask, newest first."""
        return documents.visible_kms(self._store, principal)

    def kms_after(self, engine_id: int) -> list[KM]:
        """The KMs that answer now and were published after the one of that engine id, oldest first."""
        return documents.kms_after(self._store, engine_id)

    def trainings(self, document_ids: Sequence[str]) -> list[Training]:
        """These documents with their latest jobs and KMs, in this order; those that are gone are left out."""
        return documents.trainings(self._store, document_ids)

    def counts(self) -> tuple[int, dict[JobState, int]]:
        """How many documents are kept, and how many jobs are in each state."""
        return documents.counts(self._store)

    def training_measures(self) -> TrainingMeasures:
        """What of the queue and of training is measured."""
        return measures.training(self._store)

    def waiting_by_queue(self) -> Mapping[str, int]:
        """How many jobs wait in each queue where any does."""
        return waiting.by_queue(self._store)

    def retrain(self, principal: Principal, document_id: str, recipe: dict[str, Any] | None = None) -> Job:
        """A new queued job for the newest version, with this recipe or else the last one's.

        ConflictError when one is unfinished, or has succeeded and no recipe is given.
        """
        return jobs.retrain(self._store, principal, document_id, recipe)

    def cancel(self, principal: Principal, document_id: str) -> Job:
        """End the document's unfinished job; the KM that there is answers on. ConflictError when none is.

        Whoever cancels has the queue stop the job too.
        """
        return jobs.cancel(self._store, principal, document_id)

    # What newer versions and KMs took the place of

    def pending_replacements(self) -> list[str]:
        """Ids of the documents of which something superseded is still there, oldest first."""
        return versions.pending(self._store)

    def superseded(self, document_id: str) -> Superseded | None:
        """What of the document is superseded and still there, if anything is; None for a deleted one."""
        return versions.superseded(self._store, document_id)

    def purge_superseded(self, gone: Superseded) -> dict[str, int]:
        """Remove what was superseded; counts and bytes per kind. Idempotent.

        No worker, engine or answer may be using it any more.
        """
        return versions.purge(self._store, gone)

    # Deletion

    def tombstone(self, principal: Principal, document_id: str) -> Document:
        """From here on the document is gone for everybody and its unfinished job is cancelled."""
        return deletion.tombstone(self._store, principal, document_id)

    def purge(self, document_id: str) -> dict[str, Any]:
        """Remove all that was made of a tombstoned document; counts and bytes per kind. Idempotent.

        No worker and no engine may be using its files any more. ConflictError when it is not tombstoned, or
        when a long reader kept the database's log from being emptied (then purge again).
        """
        return deletion.purge(self._store, document_id)

    def forget_copies(self, document_id: str, km_ids: Collection[str], *, whole: bool) -> None:
        """Remove what lies on this machine of KMs that are gone, or of the `whole` document: composites, and
        copies of what a shared store had. For a gateway that is not the one that purges. Idempotent.

        No answer and no engine of this machine may be using them any more.
        """
        deletion.forget_copies(self._store, document_id, km_ids, whole=whole)

    def complete_deletion(self, document_id: str, purged: dict[str, Any]) -> Receipt:
        """Write the receipt, kept apart from all content. ConflictError when it is not purged. Idempotent."""
        return deletion.complete(self._store, document_id, purged)

    def receipt(self, principal: Principal, document_id: str) -> Receipt:
        """The receipt of a completed deletion, for its uploader and for who deleted it."""
        return deletion.receipt_of(self._store, principal, document_id)

    def pending_deletions(self) -> list[Document]:
        """Tombstoned documents that have no receipt yet; after a purge they have no title."""
        return deletion.pending(self._store)

    # Jobs. StaleAttemptError tells a worker that its attempt no longer owns the job: it must stop.

    def job(self, job_id: str) -> Job:
        """The job."""
        return jobs.get(self._store, job_id)

    def document_of(self, job_id: str) -> Document:
        """The document that a job trains, for its worker; NotFoundError once it is deleted."""
        return documents.of_job(self._store, job_id)

    def job_recipe(self, job_id: str) -> dict[str, Any]:
        """The recipe that was asked for."""
        return jobs.recipe(self._store, job_id)

    def previous_km(self, job_id: str) -> KM | None:
        """The KM of an earlier version that answers until the job's is published, to train on from it.

        It is not purged while the job is unfinished, unless the document is deleted.
        """
        return versions.previous_km(self._store, job_id)

    def jobs_of(self, document_id: str) -> list[Job]:
        """All the document's jobs, newest first, also of a tombstoned one."""
        return jobs.of_document(self._store, document_id)

    def queued_jobs(self, limit: int, queues: Collection[str] | None = None) -> list[Job]:
        """The jobs that may begin now, in the order of their turns: owners alternate, and each one's own are
        ordered by priority, then by age. Only those of some queues, if named."""
        return waiting.waiting(self._store, limit, queues)

    def prioritise(self, principal: Principal, document_id: str, priority: Priority) -> Job:
        """Order the document's waiting job among its owner's. ConflictError: none waits."""
        return waiting.prioritise(self._store, principal, document_id, priority)

    def claim(self, job_id: str, *, run_id: str | None = None) -> Job | None:
        """Begin the job's next attempt, held by that run; None when it is not queued any more."""
        return jobs.claim(self._store, job_id, run_id)

    def progress(
        self, job_id: str, attempt: int, stage: Stage, step: int, total_steps: int, **data: Any
    ) -> None:
        """Say how far the attempt is; `data` goes into the event as it is, and must quote no text."""
        jobs.progress(
            self._store, job_id, attempt, stage=stage, step=step, total_steps=total_steps, data=data
        )

    def fail(self, job_id: str, attempt: int, error: str, *, keep: Collection[str] = ()) -> None:
        """End the job with a reason for the user, cut at 2000 characters.

        Its work directory is purged but for the entries named in `keep`, which a retry gets.
        """
        jobs.fail(self._store, job_id, attempt, error, keep)

    def put_off(self, job_id: str, attempt: int, reason: str, *, keep: Collection[str] | None = ()) -> Job:
        """Have the job tried again later, since the reason may pass; the wait doubles each time.

        Its work directory is purged but for the entries named in `keep` (None: all), which the next attempt
        gets.
        After as many tries as the setting `retries` allows it fails, as by `fail`.
        """
        return waiting.put_off(self._store, job_id, attempt, reason, keep)

    def release(self, job_id: str, attempt: int) -> None:
        """Put the job back into the queued state, for another attempt."""
        jobs.release(self._store, job_id, attempt)

    def hand_over(self, job: Job, data: bytes) -> None:
        """Have the job's next attempt find `data`, on whichever machine it runs, in place of what was handed
        over before. It is gone once the job has ended. Does nothing where machines share no store.

        StaleAttemptError when the attempt no longer owns the job, StoreUnavailableError.
        """
        handover.hand_over(self._store, job, data)

    def handed_over(self, job: Job, *, after: int = 0) -> bytes | None:
        """The newest that the job's attempts after that one have handed over, and that is undamaged.

        StoreUnavailableError.
        """
        return handover.handed_over(self._store, job, after)

    def publish(self, job_id: str, attempt: int, staged: Path, metrics: dict[str, Any]) -> KM:
        """Verify a staged KM, move it into place and end the job, all or nothing.

        `staged` lies in the data directory and has its manifest. ArtifactError refuses it and leaves it
        there; StaleAttemptError removes it.
        """
        return publishing.publish(self._store, job_id, attempt, staged, metrics)

    def unfinished_jobs(self, *, stale_after: float | None = None) -> list[Job]:
        """Jobs that wait for a worker and may begin now, in the order of their turns.

        Running ones whose worker has been silent for `stale_after` seconds, by default the setting
        `lease_seconds`, are put back; a job whose workers vanished more often than the setting
        `crash_retries` allows fails instead.
        """
        lease = self._store.settings.lease_seconds if stale_after is None else stale_after
        jobs.put_stale_back(self._store, lease)
        return waiting.waiting(self._store)

    def cancelled(self, job_id: str, attempt: int) -> bool:
        """Whether the attempt no longer owns the job."""
        return jobs.cancelled(self._store, job_id, attempt)

    # Runs: a worker's child process holds one job or several.

    def beat(self, run_id: str) -> set[tuple[str, int]]:
        """Say that the run is alive; the (job, attempt) pairs that it still owns."""
        return runs.beat(self._store, run_id)

    def run_of(self, job_id: str) -> Run | None:
        """The run that holds the job, also one that has yet to let go of a job taken away from it."""
        return runs.of_job(self._store, job_id)

    def jobs_held(self, run_id: str) -> list[str]:
        """Ids of the jobs that the run holds, oldest first."""
        return runs.held(self._store, run_id)

    def let_go(self, run_id: str, job_id: str, attempt: int) -> None:
        """The run has let go of a job that was taken away from it: none of its files are in use any more."""
        runs.let_go(self._store, run_id, job_id, attempt)

    def end_run(self, run_id: str, *, crash: str | None = None) -> None:
        """The run's process has ended; what it still holds is queued again. Idempotent.

        With `crash`, how it ended without a word, each of them has crashed once more; one that did so more
        often than the setting `crash_retries` allows fails with this reason.
        """
        runs.end(self._store, run_id, crash)

    # Events and files

    def recover(self) -> int:
        """Remove what an upload or a change that was killed left behind; how many files and directories.

        For the start of a server, before anything is uploaded. Idempotent.
        """
        return recovery.recover(self._store)

    @property
    def has_shared_store(self) -> bool:
        """Whether artifacts are kept in a store that machines share, and lie here as copies."""
        return self._store.artifacts.is_shared

    def held_km(self, km: KM) -> AbstractContextManager[Path]:
        """The KM's directory, here for as long as the block runs.

        ArtifactError when it is damaged or missing, StoreUnavailableError when it is not here and the shared
        store is away.
        """
        return holding.adapter(self._store.artifacts, self._store.layout, km)

    def km_manifest(self, km: KM) -> bytes:
        """The KM's manifest as it lies here or in the shared store, which may be away: StoreUnavailableError.
        FileNotFoundError when it is missing."""
        return self._store.artifacts.manifest(self._store.layout.km(km.document_id, km.id))

    def held_passages(
        self, document_id: str, text_sha256: str, check: Callable[[Path], object]
    ) -> AbstractContextManager[Path]:
        """The directory of the index of this text's passages, here for as long as the block runs; `check` is
        asked before one that comes from a shared store is kept. FileNotFoundError when there is none."""
        return holding.passages(self._store, document_id, text_sha256, check)

    def passages_dir(self, document_id: str) -> Path:
        """Where indexes of the document's passages are written, each under its text's SHA-256; purged with
        the document."""
        documents.job_of(self._store, document_id)
        return self._store.layout.passages_dir(document_id)

    def share_passages(self, document_id: str, text_sha256: str) -> None:
        """Have other machines see the index that was written. NotFoundError, and it is removed, when the
        document was deleted meanwhile."""
        holding.share_passages(self._store, document_id, text_sha256)

    def sweep(self) -> int:
        """Remove from this machine what lies here of documents, KMs and KEs that are gone, which another
        machine may have deleted; how much. For machines that share a store; call it every few seconds."""
        return self._sweeper.sweep()

    def clock_ahead_s(self) -> float:
        """How many seconds the database's clock is ahead of this machine's."""
        return measures.clock_ahead_s(self._store)

    def sweep_store(self) -> int:
        """Remove from the shared store what came there after its training had ended or its document was
        deleted, by a worker that was killed or had lost its job; how much. For gateways; call it every few
        seconds. StoreUnavailableError."""
        return self._store_sweeper.sweep()

    def events_after(self, document_id: str, event_id: int = 0) -> list[Event]:
        """The document's events after that one, oldest first."""
        return jobs.events_after(self._store, document_id, event_id)

    def work_dir(self, job_id: str) -> Path:
        """The job's directory for what it writes on the way, made if needed; purged with the document."""
        jobs.get(self._store, job_id)
        directory = self._store.layout.work_dir(job_id)
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory
