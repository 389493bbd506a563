"""A document's page: its training, live; its versions; its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from km_registry.types import Event, Principal, Role
from server.event_stream import followed
from server.modes import Mode
from server.routes import documents as api
from server.routes import removals
from server.schemas import DocumentDetail, TrainIn
from server.state import AppState, State
from server.web.access import ChangerDep, Visitor, VisitorDep
from server.web.context import Web, WebDep
from server.web.page_route import PageRoute
from server.web.sample import sample, shown_questions
from server.web.sharing import held
from server.web.training import Training
from server.web.wording import COMPARED, MODES

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/ui/documents/{document_id}", response_class=Response)
async def page(document_id: str, by: VisitorDep, state: State, web: WebDep) -> Response:
    """Ask it, follow its training, share it, change it, delete it."""
    shown = await _shown(state, by, document_id)
    kes = await run_in_threadpool(state.ke_keeper.all)
    detail: DocumentDetail = shown["detail"]
    grants = await held(document_id, by, state) if shown["owns"] else {}
    return web.page(
        "document.html",
        **shown,
        **grants,
        modes=MODES,
        compared=COMPARED,
        auto=Mode.AUTO,
        kes=[ke for ke in kes if state.ke_keeper.fits(ke)],
        questions=shown_questions() if detail.document.sha256 == sample().digest else (),
        most_chars=state.settings.max_question_chars,
        most_tokens=state.settings.max_answer_tokens,
    )


@router.get("/ui/documents/{document_id}/training", response_class=Response)
async def follow(document_id: str, by: VisitorDep, state: State, web: WebDep) -> Response:
    """The training's panel as server-sent events: what has happened so far, then whenever something does.

    `training` is HTML; `ready` says that the KM answers from now on; `end` that nothing more comes.
    """
    await run_in_threadpool(state.registry.get_document, by.principal, document_id)
    return EventSourceResponse(_panels(state, web, by.principal, document_id))


@router.get("/ui/documents/{document_id}/state", response_class=Response)
async def now(document_id: str, by: VisitorDep, state: State, web: WebDep) -> Response:
    """The training's panel and what depends on the KM, as they are now."""
    return web.page("_state.html", **await _shown(state, by, document_id))


@router.post("/ui/documents/{document_id}/train", response_class=Response)
async def train(document_id: str, by: ChangerDep, state: State, web: WebDep) -> Response:
    """Train again, as `POST /documents/{id}/train`: after a failure as before, else anew."""
    detail = await api.detail(document_id, by.principal, state)
    wanted = TrainIn(recipe=detail.recipe) if detail.job.state.value == "succeeded" else None
    await api.train(document_id, by.principal, state, wanted)
    return await now(document_id, by, state, web)


@router.post("/ui/documents/{document_id}/cancel", response_class=Response)
async def cancel(document_id: str, by: ChangerDep, state: State, web: WebDep) -> Response:
    """End the training."""
    await api.cancel(document_id, by.principal, state)
    return await now(document_id, by, state, web)


@router.put("/ui/documents/{document_id}", response_class=Response)
async def change(
    document_id: str, request: Request, response: Response, by: ChangerDep, state: State
) -> Response:
    """A new version, sent as a file."""
    begun = await api.change(document_id, request, response, by.principal, state)
    place = f"/ui/documents/{document_id}"
    return JSONResponse({"place": place, "title": begun.document.title, "created": begun.created})


@router.post("/ui/documents/{document_id}/forget-km", response_class=Response)
async def forget_km(document_id: str, by: ChangerDep, state: State, web: WebDep) -> Response:
    """Delete the KM alone; the receipt."""
    return _receipt(web, by, await removals.delete_km(document_id, by.principal, state))


@router.post("/ui/documents/{document_id}/versions/{version}/delete", response_class=Response)
async def forget_version(
    document_id: str, version: int, by: ChangerDep, state: State, web: WebDep
) -> Response:
    """Delete a former version; the receipt."""
    return _receipt(web, by, await removals.delete_version(document_id, version, by.principal, state))


@router.post("/ui/documents/{document_id}/delete", response_class=Response)
async def delete(
    document_id: str, by: ChangerDep, state: State, web: WebDep, title: Annotated[str, Form()] = ""
) -> Response:
    """Delete it with all that it taught; the receipt."""
    receipt = await api.delete(document_id, by.principal, state)
    return _receipt(web, by, receipt, title=title)


@router.get("/ui/receipts/{receipt_id}", response_class=Response)
async def receipt(receipt_id: str, by: VisitorDep, state: State, web: WebDep) -> Response:
    """A receipt, once more."""
    return _receipt(web, by, await api.receipt(receipt_id, by.principal, state))


def _receipt(web: Web, by: Visitor, receipt: Any, title: str = "") -> Response:
    place = getattr(receipt, "id", None) or receipt.document_id
    return web.page("receipt.html", by=by, receipt=receipt, place=f"/ui/receipts/{place}", title=title)


async def _shown(state: AppState, by: Visitor, document_id: str) -> dict[str, Any]:
    detail = await api.detail(document_id, by.principal, state)
    training, _ = await run_in_threadpool(_training, state, document_id)
    owns = detail.role is Role.OWNER
    return {"by": by, "detail": detail, "training": training, "owns": owns, "document": detail.document}


def _training(state: AppState, document_id: str) -> tuple[Training, int]:
    """The latest job as its events tell, and the last event's id; blocking."""
    job = state.registry.job_of(document_id)
    events = state.registry.events_after(document_id)
    return Training.of(job, events), max((event.id for event in events), default=0)


async def _panels(
    state: AppState, web: Web, principal: Principal, document_id: str
) -> AsyncGenerator[ServerSentEvent, None]:
    training, seen = await run_in_threadpool(_training, state, document_id)
    yield _panel(web, training, seen)
    async with aclosing(followed(state, principal, document_id, seen)) as events:
        async for event in events:
            training = await _next(state, training, event)
            yield _panel(web, training, event.id)
    if training.finished:
        yield ServerSentEvent("over", event="end")


async def _next(state: AppState, training: Training, event: Event) -> Training:
    """The training with the event; a newer job's first event begins another one."""
    if training.take(event):
        return training
    return (await run_in_threadpool(_training, state, event.document_id))[0]


def _panel(web: Web, training: Training, event_id: int) -> ServerSentEvent:
    return ServerSentEvent(
        web.html("_training.html", training=training), event="training", id=str(event_id), sep="\n"
    )
