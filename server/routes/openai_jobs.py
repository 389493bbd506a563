"""OpenAI's fine-tuning jobs: trainings of documents."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from km_registry.errors import ConflictError
from km_registry.types import Action, Document, Job, JobState
from server import finetuning
from server.auth import UserDep
from server.problems import documented
from server.recipes import complete_recipe
from server.routes import documents
from server.schemas import TrainIn
from server.schemas_finetuning import FineTuningEventList, FineTuningIn, FineTuningList, FineTuningOut
from server.state import AppState, State

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["OpenAI-compatible"])


@router.post("", summary="Train a document", responses=documented(404, 409, 422, 429))
async def create(sent: FineTuningIn, principal: UserDep, state: State) -> FineTuningOut:
    """The training that its upload began, where nothing else is asked for; with a `recipe` or a `seed` of its
    own another one takes that one's place."""
    document = await run_in_threadpool(
        state.registry.get_document, principal, sent.training_file, Action.TRAIN
    )
    job = await run_in_threadpool(state.registry.job_of, document.id)
    recipe = _recipe(sent, state)
    same = recipe is None or recipe == await run_in_threadpool(state.registry.job_recipe, job.id)
    if job.state in (JobState.FAILED, JobState.CANCELLED) or not same:
        if not job.state.finished:
            await documents.cancel(document.id, principal, state)
        await documents.train(document.id, principal, state, TrainIn(recipe=recipe))
    return await _latest(state, document)


@router.get("", summary="Trainings of your documents", responses=documented(404, 422))
async def listing(
    principal: UserDep,
    state: State,
    limit: Annotated[int, Query(ge=1, le=100, description="most jobs to return")] = 20,
    after: Annotated[str | None, Query(description="the last job of the page before")] = None,
) -> FineTuningList:
    """The latest of each document, newest document first."""
    look = partial(finetuning.listed, state.registry, principal, limit, after)
    data, more = await run_in_threadpool(look)
    return FineTuningList(data=data, has_more=more)


@router.get("/{job_id}", summary="A training", responses=documented(404))
async def retrieve(job_id: str, principal: UserDep, state: State) -> FineTuningOut:
    """404 for that of a document that you may not read."""
    document, job = await run_in_threadpool(finetuning.find, state.registry, principal, job_id)
    return await run_in_threadpool(finetuning.job_of, state.registry, document, job)


@router.post("/{job_id}/cancel", summary="End a training", responses=documented(404, 409))
async def cancel(job_id: str, principal: UserDep, state: State) -> FineTuningOut:
    """409 when it is over already."""
    look = partial(finetuning.find, state.registry, principal, job_id, Action.TRAIN)
    document, job = await run_in_threadpool(look)
    await _require_unfinished(state, job)
    await documents.cancel(document.id, principal, state)
    return await run_in_threadpool(
        lambda: finetuning.job_of(state.registry, document, state.registry.job(job_id))
    )


@router.get("/{job_id}/events", summary="What happened to a training", responses=documented(404, 422))
async def events(
    job_id: str,
    principal: UserDep,
    state: State,
    limit: Annotated[int, Query(ge=1, le=100, description="most events to return")] = 20,
    after: Annotated[str | None, Query(max_length=64, description="only events older than this")] = None,
) -> FineTuningEventList:
    """Newest first; `GET /documents/{id}/events` streams them."""
    _, job = await run_in_threadpool(finetuning.find, state.registry, principal, job_id)
    look = partial(finetuning.events_of, state.registry, job, limit, after)
    data, more = await run_in_threadpool(look)
    return FineTuningEventList(data=data, has_more=more)


def _recipe(sent: FineTuningIn, state: AppState) -> dict[str, object] | None:
    """The whole recipe that is asked for; None when none is."""
    if sent.recipe is None and sent.seed is None:
        return None
    seed = {} if sent.seed is None else {"seed": sent.seed}
    return complete_recipe({**(sent.recipe or {}), **seed}, state.recipe_limits)


async def _require_unfinished(state: AppState, job: Job) -> None:
    latest = await run_in_threadpool(state.registry.job_of, job.document_id)
    if job.state.finished or latest.id != job.id:
        raise ConflictError("the training is over; there is nothing to cancel")


async def _latest(state: AppState, document: Document) -> FineTuningOut:
    def look() -> FineTuningOut:
        return finetuning.job_of(state.registry, document, state.registry.job_of(document.id))

    return await run_in_threadpool(look)
