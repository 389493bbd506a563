"""The list of documents, and taking new ones in."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from km_registry.types import JobState
from server.recipes import complete_recipe, described
from server.routes import documents as api
from server.schemas import DocumentList
from server.state import AppState, State
from server.web.access import ChangerDep, Visitor, VisitorDep
from server.web.context import WebDep
from server.web.names import user_names
from server.web.page_route import PageRoute
from server.web.sample import sample
from server.web.wording import PRESETS, STAGES, state_name

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_PER_PAGE = 25

Search = Annotated[str, Query(max_length=300)]
Before = Annotated[str | None, Query(max_length=64)]


@router.get("/", response_class=Response)
async def home(by: VisitorDep, state: State, web: WebDep, q: Search = "", before: Before = None) -> Response:
    """Every document that one may see; on a first visit what to do."""
    return web.page(
        "documents.html",
        by=by,
        q=q,
        before=before,
        limits=state.settings,
        presets=described(state.recipe_limits).presets,
        preset_names=PRESETS,
        **await _found(state, by, q, before),
    )


@router.get("/ui/rows", response_class=Response)
async def rows(by: VisitorDep, state: State, web: WebDep, q: Search = "", before: Before = None) -> Response:
    """The list alone, for searching, for the next page and to follow trainings."""
    return web.page("_documents.html", by=by, q=q, before=before, **await _found(state, by, q, before))


@router.post("/ui/documents", response_class=Response)
async def upload(request: Request, response: Response, by: ChangerDep, state: State) -> Response:
    """Take a file or a text in, as `POST /documents` does; where its page is."""
    begun = await api.upload(request, response, by.principal, state)
    status = response.status_code or 202
    place = f"/ui/documents/{begun.document.id}"
    return JSONResponse(
        {"place": place, "title": begun.document.title, "created": begun.created}, status_code=status
    )


@router.post("/ui/sample", response_class=Response)
async def add_sample(by: ChangerDep, state: State) -> Response:
    """Take the sample in, and go to its page."""
    response = Response()
    shown = sample()
    recipe = complete_recipe(None, state.recipe_limits)
    outcome = await run_in_threadpool(
        state.registry.add_document, by.principal, shown.title, shown.text, recipe
    )
    begun = await api.begun(state, response, outcome)
    return Response(status_code=204, headers={"HX-Redirect": f"/ui/documents/{begun.document.id}"})


async def _found(state: AppState, by: Visitor, q: str, before: str | None) -> dict[str, Any]:
    """The rows of one page, with the names of their owners."""
    listed = await api.listing(by.principal, state, limit=_PER_PAGE, before=before, q=q or None)
    names = await user_names(state, {one.owner_id for one in listed.documents})
    return {
        "documents": listed.documents,
        "next_before": listed.next_before,
        "names": names,
        "labels": {one.id: _label(one.state, one.progress) for one in listed.documents},
        "follows": _any_unfinished(listed),
    }


def _any_unfinished(listed: DocumentList) -> bool:
    return any(not one.state.finished for one in listed.documents)


def _label(state: JobState, progress: str) -> str:
    """`training 120/200` as a person reads it."""
    if state is not JobState.RUNNING:
        return state_name(state)
    stage, _, steps = progress.partition(" ")
    name = next((name for one, name in STAGES.items() if one == stage), "Starting")
    return f"{name} {steps}".strip()
