"""What the HTTP API answers, as types. At run time these are plain dictionaries, as JSON has them.

A test holds them to the server's own schemas, so that the two do not part.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Document(TypedDict):
    """A document as it is kept."""

    id: str
    title: str
    sha256: str
    size_bytes: int
    created_at: str
    version: int


class ListedDocument(Document):
    """A document with how far its newest training is."""

    role: str
    state: str
    progress: str
    recovered: float | None
    km_version: int | None


class DocumentPage(TypedDict):
    """Some documents, and where the next ones begin."""

    documents: list[ListedDocument]
    next_before: str | None


class Version(TypedDict):
    """A version of a document."""

    version: int
    title: str
    sha256: str
    size_bytes: int
    created_at: str


class Job(TypedDict):
    """One training run."""

    id: str
    version: int
    state: str
    attempt: int
    stage: str
    step: int
    total_steps: int
    progress: str
    error: str | None
    queue: str
    waits_for: str | None
    not_before: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class KnowledgeModule(TypedDict):
    """A published KM."""

    id: str
    version: int
    digest: str
    base_fingerprint: str
    created_at: str
    metrics: dict[str, Any]


class DocumentAndJob(TypedDict):
    """An upload's outcome."""

    document: Document
    job: Job
    created: bool


class DocumentDetail(TypedDict):
    """A document, its latest job, and its KM once there is one."""

    document: Document
    role: str
    job: Job
    km: KnowledgeModule | None
    recipe: dict[str, Any]
    versions: list[Version]


class JobStarted(TypedDict):
    """A training that was asked for again."""

    job: Job


class Receipt(TypedDict):
    """Proof of a deletion."""

    document_id: str
    requested_at: str
    completed_at: str
    purged: dict[str, Any]


class Removal(TypedDict):
    """Proof that a KM alone, a version, or a user with all they own was removed."""

    id: str
    kind: str
    owner_id: str
    document_id: str | None
    version: int | None
    km_ids: list[str]
    requested_at: str
    completed_at: str
    purged: dict[str, Any]


class Passage(TypedDict):
    """A piece of the document that was in the prompt."""

    text: str
    score: float
    start: int
    end: int


class Answer(TypedDict):
    """An answer, what it was made of, and what it cost."""

    answer: str
    mode: str
    asked_mode: str
    why: str
    document_id: str
    km_id: str | None
    ke_id: str | None
    ke_name: str | None
    why_ke: str
    version: int
    passages: list[Passage]
    warning: str | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    milliseconds: float


class Limits(TypedDict):
    """What recipes are held to."""

    rank: int
    context_tokens: int | None
    generators: list[str]


class Preset(TypedDict):
    """A recipe by name."""

    recipe: dict[str, Any]
    problem: str | None


class Recipes(TypedDict):
    """What an upload may ask of its training."""

    presets: dict[str, Preset]
    json_schema: dict[str, Any]
    limits: Limits


class KnowledgeExtractor(TypedDict):
    """A registered KE."""

    id: str
    name: str
    version: int
    is_default: bool
    fits: bool
    base_model: str
    base_fingerprint: str
    rank: int
    prompt_format: str
    trained: str
    digest: str
    created_at: str
    metrics: dict[str, Any]


class KERegistered(TypedDict):
    """What registering a KE came to."""

    ke: KnowledgeExtractor
    created: bool
    warning: str | None


class KEDeleted(TypedDict):
    """What deleting a KE removed."""

    ke_id: str
    purged: dict[str, int]


class Grant(TypedDict):
    """A role that a user or a group holds on a document."""

    principal_id: str
    name: str
    role: str
    created_at: str


class User(TypedDict):
    """A person or service that owns documents."""

    id: str
    name: str
    is_admin: bool
    created_at: str


class UserCreated(TypedDict):
    """A new user with their first key, shown this once."""

    user: User
    api_key: str


class Group(TypedDict):
    """Users that are granted roles together."""

    id: str
    name: str
    created_at: str


class Me(TypedDict):
    """Who you are to the server."""

    user: User
    groups: list[Group]
    key_id: NotRequired[str | None]


class Key(TypedDict):
    """An API key, without its secret."""

    id: str
    user_id: str
    name: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class KeyCreated(TypedDict):
    """A new key with its secret, shown this once."""

    key: Key
    api_key: str


class AuditEntry(TypedDict):
    """Who did or tried what, on which id, when."""

    id: int
    at: str
    actor_id: str | None
    key_id: str | None
    action: str
    target_id: str | None
    other_id: str | None
    outcome: str


class AuditPage(TypedDict):
    """Some entries of the audit log, and where older ones begin."""

    entries: list[AuditEntry]
    next_before: int | None
