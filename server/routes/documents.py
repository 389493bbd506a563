"""Documents: upload, look at, follow, train again, delete."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel
from redis.exceptions import RedisError
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool

from km_registry.errors import NotFoundError
from km_registry.types import Action, Document, Job, Priority, Role, Training
from server import workers
from server.auth import UserDep
from server.event_stream import event_stream
from server.problems import documented
from server.recipes import complete_recipe
from server.schemas import (
    DocumentAndJob,
    DocumentChangeIn,
    DocumentDetail,
    DocumentIn,
    DocumentList,
    DocumentListed,
    DocumentOut,
    JobOut,
    JobStarted,
    KMOut,
    PriorityIn,
    ReceiptOut,
    RemovalOut,
    TrainIn,
    VersionOut,
)
from server.state import AppState, State
from server.uploads import read_change, read_upload

router = APIRouter(tags=["documents"])
_log = structlog.get_logger(__name__)
_FILE_HELP = "a PDF, DOCX, HTML, Markdown or text file; what it is is told by its content"


def _body_of(model: type[BaseModel], title: str) -> dict[str, Any]:
    """The body of an upload, in both ways of sending it."""
    properties = {
        "file": {"type": "string", "format": "binary", "description": _FILE_HELP},
        "title": {"type": "string", "description": title},
        "recipe": {"type": "string", "description": "the recipe as JSON"},
    }
    form = {"type": "object", "required": ["file"], "properties": properties}
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {
        "required": True,
        "content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}},
    }


@router.post(
    "/documents",
    status_code=202,
    summary="Upload a document and have its KM trained",
    response_model=DocumentAndJob,
    responses={
        200: {"model": DocumentAndJob, "description": "You had sent this text before; nothing new was begun"},
        **documented(400, 413, 415, 422),
    },
    openapi_extra={"requestBody": _body_of(DocumentIn, "what to call it; the file's name by default")},
)
async def upload(request: Request, response: Response, principal: UserDep, state: State) -> DocumentAndJob:
    """Send JSON, or a file in a form. Modes `rag` and `icl` answer from it at once, mode `km` once it is
    trained; mode `auto` takes what there is."""
    sent = await read_upload(request, state.intake)
    recipe = complete_recipe(sent.recipe, state.recipe_limits)
    outcome = await run_in_threadpool(
        state.registry.add_document, principal, sent.title or "", sent.text, recipe
    )
    return await begun(state, response, outcome)


@router.put(
    "/documents/{document_id}",
    status_code=202,
    summary="Give a document a new version",
    response_model=DocumentAndJob,
    responses={
        200: {"model": DocumentAndJob, "description": "It has this text already; nothing new was begun"},
        **documented(400, 404, 409, 413, 415, 422),
    },
    openapi_extra={"requestBody": _body_of(DocumentChangeIn, "what to call it; as before by default")},
)
async def change(
    document_id: str, request: Request, response: Response, principal: UserDep, state: State
) -> DocumentAndJob:
    """Modes `rag` and `icl` answer from the new text at once, and so does `auto`; the former KM answers in
    mode `km` until the new one is trained."""
    await run_in_threadpool(state.registry.get_document, principal, document_id, Action.UPDATE)
    sent = await read_change(request, state.intake)
    recipe = complete_recipe(sent.recipe, state.recipe_limits)
    update = partial(state.registry.update_document, title=sent.title, recipe=recipe)
    outcome = await run_in_threadpool(update, principal, document_id, sent.text)
    state.replacements.begin(document_id)
    return await begun(state, response, outcome)


@router.get(
    "/documents",
    summary="Your documents and those shared with you, newest first",
    responses=documented(404, 422),
)
async def listing(
    principal: UserDep,
    state: State,
    limit: Annotated[int, Query(ge=1, le=100, description="most documents to return")] = 100,
    before: Annotated[str | None, Query(description="only documents older than this one")] = None,
    q: Annotated[str | None, Query(max_length=300, description="only those with this in the title")] = None,
) -> DocumentList:
    """One page; `next_before` leads to the next."""
    # One more than asked for tells whether there is a next page.
    look = partial(state.registry.list_documents, limit=limit + 1, before=before, matching=q)
    found = await run_in_threadpool(look, principal)
    ids = [document.id for document in found[:limit]]
    roles = await run_in_threadpool(state.registry.people.roles, principal, ids)
    shown = [document_id for document_id in ids if document_id in roles]
    trainings = await run_in_threadpool(state.registry.trainings, shown)
    return DocumentList(
        documents=[_listed(one, roles[one.document.id]) for one in trainings],
        next_before=found[limit - 1].id if len(found) > limit else None,
    )


@router.get("/documents/{document_id}", summary="A document, its job and its KM", responses=documented(404))
async def detail(document_id: str, principal: UserDep, state: State) -> DocumentDetail:
    """How far its training is, and what was measured when it is done."""

    def look() -> DocumentDetail:
        document = state.registry.get_document(principal, document_id)
        role = state.registry.people.roles(principal, [document_id]).get(document_id)
        if role is None:
            # Taken away in this very moment.
            raise NotFoundError
        # The KM is looked for after the job: a job seen as succeeded has its KM.
        job = workers.told(state.queue, state.registry.job_of(document_id))
        km = state.registry.km_of(document_id)
        return DocumentDetail(
            document=DocumentOut.model_validate(document),
            role=role,
            job=job,
            km=KMOut.model_validate(km) if km else None,
            recipe=state.registry.job_recipe(job.id),
            versions=[VersionOut.model_validate(one) for one in state.registry.versions_of(document_id)],
        )

    found = await run_in_threadpool(look)
    if found.km is not None:
        state.prefetching.opened(document_id)
    return found


@router.get(
    "/documents/{document_id}/events",
    summary="Follow the training (server-sent events)",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "What has happened, then what happens, until the job is finished. An event's name "
            "is its kind (queued, progress, published, failed, cancelled), its id grows, its data is JSON.",
            "content": {
                "text/event-stream": {
                    "example": 'id: 7\nevent: progress\ndata: {"stage": "training", "step": 120}\n'
                }
            },
        },
        **documented(404, 422),
    },
)
async def events(
    document_id: str,
    principal: UserDep,
    state: State,
    last_event_id: Annotated[int, Header(ge=0, description="the last event that you have seen")] = 0,
) -> EventSourceResponse:
    """Reconnect with `Last-Event-ID` to miss nothing."""
    await run_in_threadpool(state.registry.get_document, principal, document_id)
    return EventSourceResponse(event_stream(state, principal, document_id, last_event_id))


@router.post(
    "/documents/{document_id}/train",
    status_code=202,
    summary="Train again",
    responses=documented(404, 409, 422),
)
async def train(
    document_id: str, principal: UserDep, state: State, wanted: TrainIn | None = None
) -> JobStarted:
    """A new job: after a failure, or with another recipe. 409 while one is unfinished.

    The KM that there is answers until the new one takes its place.
    """
    await run_in_threadpool(state.registry.get_document, principal, document_id, Action.TRAIN)
    recipe = None
    if wanted is not None and wanted.recipe is not None:
        recipe = complete_recipe(wanted.recipe, state.recipe_limits)
    job = await run_in_threadpool(state.registry.retrain, principal, document_id, recipe)
    await _enqueue(state, job)
    return JobStarted(job=JobOut.model_validate(job))


@router.post("/documents/{document_id}/cancel", summary="End the training", responses=documented(404, 409))
async def cancel(document_id: str, principal: UserDep, state: State) -> JobStarted:
    """The KM that there is answers on, and `POST …/train` begins again. 409 when nothing is being trained."""
    job = await run_in_threadpool(state.registry.cancel, principal, document_id)
    try:
        await run_in_threadpool(state.queue.stop, job.id)
    except RedisError as error:
        # Its worker finds out by itself, at its next step.
        _log.warning("worker not told", job_id=job.id, error=type(error).__name__)
    return JobStarted(job=JobOut.model_validate(job))


@router.put(
    "/documents/{document_id}/priority",
    summary="Order a waiting training among your own",
    responses=documented(404, 409, 422),
)
async def prioritise(document_id: str, wanted: PriorityIn, principal: UserDep, state: State) -> JobStarted:
    """Owners take turns whatever they set here; it orders each one's own. 409 when none waits."""
    priority = Priority[wanted.priority.upper()]
    job = await run_in_threadpool(state.registry.prioritise, principal, document_id, priority)
    return JobStarted(job=JobOut.model_validate(job))


@router.delete(
    "/documents/{document_id}", summary="Delete a document and its knowledge", responses=documented(404, 503)
)
async def delete(document_id: str, principal: UserDep, state: State) -> ReceiptOut:
    """Answers in flight are finished first; new questions get 404 at once. Returns the receipt."""
    return ReceiptOut.model_validate(await state.deletions.forget(principal, document_id))


@router.get("/receipts/{receipt_id}", summary="The receipt of a deletion", responses=documented(404))
async def receipt(receipt_id: str, principal: UserDep, state: State) -> ReceiptOut | RemovalOut:
    """Of a document by the document's id, of anything else by the receipt's. For who uploaded the document,
    and for who deleted it."""
    if receipt_id.startswith("rcp_"):
        found = await run_in_threadpool(state.registry.removals.receipt, principal, receipt_id)
        return RemovalOut.model_validate(found)
    return ReceiptOut.model_validate(await run_in_threadpool(state.registry.receipt, principal, receipt_id))


def _listed(training: Training, role: Role) -> DocumentListed:
    km = training.km
    return DocumentListed(
        **asdict(training.document),
        role=role,
        state=training.job.state,
        progress=training.job.progress,
        recovered=km.metrics.get("recovered") if km else None,
        km_version=km.version if km else None,
    )


async def begun(state: AppState, response: Response, outcome: tuple[Document, Job, bool]) -> DocumentAndJob:
    """Have what is new embedded and trained; 200 in `response` when nothing is new."""
    document, job, created = outcome
    if created:
        state.retriever.begin(document.id)
        await _enqueue(state, job)
    else:
        response.status_code = 200
    return DocumentAndJob(
        document=DocumentOut.model_validate(document), job=JobOut.model_validate(job), created=created
    )


async def _enqueue(state: AppState, job: Job) -> None:
    try:
        await run_in_threadpool(state.queue.enqueue, job)
    except RedisError as error:
        # The job row is the truth: it is enqueued when queue and rows are next reconciled.
        _log.warning("job not enqueued yet", job_id=job.id, error=type(error).__name__)
