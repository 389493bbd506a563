"""KEs: listed for everybody, registered and deleted by administrators."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool

from km_registry.types import KE
from server.auth import AdminDep, UserDep
from server.problems import documented
from server.schemas_kes import KEDeleted, KEIn, KEList, KEOut, KERegistered
from server.state import AppState, State

router = APIRouter(prefix="/kes", tags=["KEs"])


@router.get("", summary="What `ke` may name", responses=documented())
async def listed(_: UserDep, state: State) -> KEList:
    """Every KE that is registered. `none` and `default` may be named too."""
    found = await run_in_threadpool(state.ke_keeper.all)
    return KEList(kes=[_out(state, ke) for ke in found])


@router.post("", status_code=201, summary="Register a KE", responses=documented(403, 409, 422))
async def register(sent: KEIn, _: AdminDep, state: State, response: Response) -> KERegistered:
    """From a directory on the server. One that does not fit the base model is refused here, not when it is
    asked for. The same content again is a 200 with the KE that there is."""
    ke, created, warning = await run_in_threadpool(
        partial(state.ke_keeper.register, Path(sent.directory), make_default=sent.default)
    )
    if not created:
        response.status_code = 200
    return KERegistered(ke=_out(state, ke), created=created, warning=warning)


@router.put("/{ke_id}/default", summary="Make a KE the default", responses=documented(403, 404))
async def set_default(ke_id: str, _: AdminDep, state: State) -> KEOut:
    """For its base model, in place of the one so far."""
    return _out(state, await run_in_threadpool(state.ke_keeper.set_default, ke_id))


@router.delete("/{ke_id}", summary="Delete a KE", responses=documented(403, 404, 503))
async def delete(ke_id: str, _: AdminDep, state: State) -> KEDeleted:
    """With every composite made of it. Answers under way are waited for; KMs are not touched."""
    return KEDeleted(ke_id=ke_id, purged=await state.ke_keeper.forget(ke_id))


def _out(state: AppState, ke: KE) -> KEOut:
    fields = {name: getattr(ke, name) for name in KEOut.model_fields if name != "fits"}
    return KEOut(**fields, fits=state.ke_keeper.fits(ke))
