"""Documents and their trainings as OpenAI's clients know them: files and fine-tuning jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from km_registry.errors import NotFoundError
from km_registry.registry import Registry
from km_registry.types import Action, Document, Event, Job, JobState, Principal
from server.schemas_finetuning import FileOut, FineTuningEventOut, FineTuningOut, JobErrorOut

_EVENT = "ftevent-"
_SAID = {"queued": "Waiting for its turn", "published": "The KM is trained", "cancelled": "Cancelled"}


def file_of(document: Document) -> FileOut:
    """A document as a file."""
    return FileOut(
        id=document.id,
        bytes=document.size_bytes,
        created_at=_seconds(document.created_at),
        filename=document.title,
    )


def job_of(registry: Registry, document: Document, job: Job) -> FineTuningOut:
    """A training as a fine-tuning job."""
    km = registry.km_of(document.id)
    failed = job.state is JobState.FAILED
    return FineTuningOut(
        id=job.id,
        created_at=_seconds(job.created_at),
        finished_at=_seconds(job.finished_at) if job.finished_at else None,
        status=job.state.value,
        fine_tuned_model=km.id if km is not None and km.job_id == job.id else None,
        training_file=document.id,
        organization_id=document.owner_id,
        seed=int(registry.job_recipe(job.id).get("seed", 0)),
        error=JobErrorOut(message=job.error or "It failed.") if failed else None,
    )


def find(
    registry: Registry, principal: Principal, job_id: str, action: Action = Action.READ
) -> tuple[Document, Job]:
    """The job and its document, if the principal may do this with that. NotFoundError, which takes as long
    for a job that never was."""
    try:
        job = registry.job(job_id)
    except NotFoundError:
        registry.get_document(principal, job_id, action)
        raise
    return registry.get_document(principal, job.document_id, action), job


def listed(
    registry: Registry, principal: Principal, limit: int, after: str | None
) -> tuple[list[FineTuningOut], bool]:
    """The latest job of each document that the principal may read, newest document first; whether there are
    more. `after` is the page before's last job. NotFoundError when there is no such job."""
    before = None if after is None else find(registry, principal, after)[0].id
    documents = registry.list_documents(principal, limit=limit + 1, before=before)
    trainings = registry.trainings([document.id for document in documents[:limit]])
    return [job_of(registry, one.document, one.job) for one in trainings], len(documents) > limit


def events_of(
    registry: Registry, job: Job, limit: int, after: str | None
) -> tuple[list[FineTuningEventOut], bool]:
    """What happened to the job, newest first, older than the event `after`; whether there is more."""
    told = [one for one in registry.events_after(job.document_id) if one.job_id == job.id]
    if after is not None and after.removeprefix(_EVENT).isdecimal():
        told = [one for one in told if one.id < int(after.removeprefix(_EVENT))]
    newest = told[::-1]
    return [_event(one) for one in newest[:limit]], len(newest) > limit


def _event(event: Event) -> FineTuningEventOut:
    measured = event.kind == "progress"
    return FineTuningEventOut(
        id=f"{_EVENT}{event.id}",
        created_at=_seconds(event.created_at),
        level="error" if event.kind == "failed" else "info",
        message=_message(event),
        type="metrics" if measured else "message",
        data=event.data,
    )


def _message(event: Event) -> str:
    data: dict[str, Any] = event.data
    match event.kind:
        case "progress":
            steps = f" {data['step']}/{data['total_steps']}" if data.get("total_steps") else ""
            return f"{data['stage']}{steps}"
        case "failed":
            return str(data["error"])
        case kind:
            return _SAID.get(kind, kind)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
