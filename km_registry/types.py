"""What the registry keeps: users, documents, KMs, KEs, jobs, events, receipts. Plain frozen records."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

#: What is trained by workers that were given no queue, and jobs whose recipe names none.
DEFAULT_QUEUE = "default"


class Action(StrEnum):
    """What a principal may want to do with a document."""

    READ = "read"
    ASK = "ask"
    TRAIN = "train"
    UPDATE = "update"
    DELETE = "delete"
    SHARE = "share"
    EXPORT = "export"


class Role(StrEnum):
    """What a principal holds on a document."""

    OWNER = "owner"
    READER = "reader"


class JobState(StrEnum):
    """Life of a job; the job row is the truth, the queue only executes it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether no worker will touch the job any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Stage(StrEnum):
    """Where a running job is; the order is the order of the pipeline."""

    WAITING = "waiting"
    SYNTHESIS = "synthesis"
    TEACHER = "teacher"
    TRAINING = "training"
    EVALUATION = "evaluation"
    EXPORT = "export"
    DONE = "done"


class Priority(IntEnum):
    """Which of an owner's waiting jobs comes first."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a user, known by an API key."""

    user_id: str
    is_admin: bool = False
    key_id: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class User:
    """A person or service that owns documents; `usr_…`."""

    id: str
    name: str
    is_admin: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Group:
    """Users that are granted roles together; `grp_…`."""

    id: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A user's key, without its secret; `key_…`. `last_used_at` is right to a minute."""

    id: str
    user_id: str
    name: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A role that a principal, a user (`usr_…`) or a group (`grp_…`), holds on a document."""

    document_id: str
    principal_id: str
    name: str
    role: Role
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Claim:
    """What something that goes on, like a stream, rests on: who does what, by which key, with which document.

    Without a document it rests on the key alone.
    """

    principal: Principal
    key_id: str | None
    action: Action
    document_id: str | None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did or tried what, on which id, when. `other_id` is the second one concerned, as in a grant."""

    id: int
    at: datetime
    actor_id: str | None
    key_id: str | None
    action: str
    target_id: str | None
    other_id: str | None
    outcome: str


@dataclass(frozen=True, slots=True)
class Document:
    """What a user uploaded, in its newest version. The text lies in a file of the artifact store; `doc_…`."""

    id: str
    owner_id: str
    title: str
    sha256: str
    size_bytes: int
    created_at: datetime
    version: int = 1


@dataclass(frozen=True, slots=True)
class DocumentVersion:
    """One version of a document; they count from 1. Only the newest one's text is kept."""

    document_id: str
    version: int
    title: str
    sha256: str
    size_bytes: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KM:
    """A Knowledge Module: the published LoRA adapter of one version of a document, immutable; `km_…`.

    `engine_id` is a positive integer never reused, which the engine needs beside the name.
    `path` is the adapter's PEFT directory.
    """

    id: str
    engine_id: int
    document_id: str
    job_id: str
    attempt: int
    digest: str
    path: str
    base_fingerprint: str
    created_at: datetime
    metrics: dict[str, Any] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True, slots=True)
class KE:
    """A Knowledge Extractor: a task LoRA and, for every layer that it adapts, what a KM and it weigh; `ke_…`.

    `trained` is "km+ke" or "ke": with KMs, or without. Versions of a name count from 1.
    """

    id: str
    name: str
    version: int
    digest: str
    path: str
    base_model: str
    base_fingerprint: str
    rank: int
    prompt_format: str
    trained: str
    is_default: bool
    created_at: datetime
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """One training run for a version of a document; `attempt` fences everything a worker may write."""

    id: str
    document_id: str
    state: JobState
    attempt: int
    stage: Stage
    step: int
    total_steps: int
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    heartbeat_at: datetime | None = None
    error: str | None = None
    version: int = 1
    #: Attempts that ended without a word.
    crashes: int = 0
    #: Attempts that failed for a passing reason; the next one is not before this moment.
    retries: int = 0
    not_before: datetime | None = None
    priority: Priority = Priority.NORMAL
    #: Only workers that serve it train the job.
    queue: str = DEFAULT_QUEUE

    @property
    def progress(self) -> str:
        """One phrase for a person: how far the training is."""
        if self.state is not JobState.RUNNING:
            return str(self.state)
        steps = f" {self.step}/{self.total_steps}" if self.total_steps else ""
        return f"{self.stage}{steps}"


@dataclass(frozen=True, slots=True)
class Training:
    """A document with its latest job and with the KM that answers for it, if there is one."""

    document: Document
    job: Job
    km: KM | None


@dataclass(frozen=True, slots=True)
class Superseded:
    """What a newer version or a newer KM of a document took the place of, as far as it is still there."""

    document_id: str
    versions: tuple[int, ...]
    kms: tuple[KM, ...]
    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """A worker's child process and the jobs that it holds. `id` is the queue entry that it executes."""

    id: str
    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker as its last heartbeat tells. `run_id` is what it executes since `since`; without one it is
    idle, and `since` is when it was started."""

    name: str
    host: str
    queues: tuple[str, ...]
    run_id: str | None
    since: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a document's job, in order of `id`. Quotes no document text."""

    id: int
    document_id: str
    job_id: str
    kind: str
    data: dict[str, Any]
    created_at: datetime


class RemovalKind(StrEnum):
    """What may be removed beside a document."""

    KM = "km"
    VERSION = "version"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Removal:
    """A removal that was asked for, and its receipt once it is completed; `rcp_…`. Holds no content."""

    id: str
    kind: RemovalKind
    owner_id: str
    requested_at: datetime
    completed_at: datetime | None
    document_id: str | None
    version: int | None
    km_ids: tuple[str, ...]
    purged: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of a deletion: what was purged and when. Holds no content."""

    document_id: str
    owner_id: str
    requested_at: datetime
    completed_at: datetime
    purged: dict[str, Any]
