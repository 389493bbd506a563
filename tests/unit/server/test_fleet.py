"""Several gateways on one database: what one deletes leaves all of them, before its receipt is written."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from km_registry.gateways import Gateways
from km_registry.types import KM
from server import fleet as fleets
from server.app import AppState
from server.doctor import repaired
from server.fencing import FENCE_S
from server.keepers import keepers_of
from server.startup import ServeError
from tests.support import write_ke
from tests.unit.server.conftest import TEXT, Someone, error_of, train
from tests.unit.server.gateways import Running, Site, acknowledged, beating, until


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, migrated: Path) -> Iterator[Site]:
    if getattr(request, "param", "sqlite") == "sqlite":
        shutil.copy(migrated, tmp_path / "records.sqlite3")
        yield Site(f"sqlite:///{tmp_path / 'records.sqlite3'}", tmp_path)
        return
    with request.getfixturevalue("postgres").database() as url:
        yield Site(url, tmp_path)


on_both = pytest.mark.parametrize("site", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
async def here(site: Site) -> AsyncIterator[Running]:
    async with site.gateway("here") as running:
        yield running


@pytest.fixture
async def there(site: Site, here: Running) -> AsyncIterator[Running]:
    async with site.gateway("there") as running:
        # Each knows of the other.
        await here.state.fleet.beat()
        yield running


async def asked(*gateways: Running) -> tuple[str, KM]:
    """A document with a KM that each of the gateways has answered from; it was uploaded to the first."""
    number = len(gateways[0].registry.list_documents(gateways[0].ada.principal))
    document_id = await gateways[0].ada.upload(f"{TEXT} It has {number} boats.")
    km = train(gateways[0].registry, document_id, gateways[0].ada.principal)
    for gateway in gateways:
        assert (await gateway.ada.ask(document_id)).status_code == 200
    return document_id, km


def copies(running: Running, name: str) -> list[Path]:
    return [path for path in running.state.settings.data_dir.rglob("*") if path.name.startswith(name)]


async def test_what_one_publishes_all_answer_from_at_once(here: Running, there: Running) -> None:
    document_id = await here.ada.upload()
    assert error_of(await there.ada.ask(document_id), 409)["code"] == "km_not_trained"
    train(here.registry, document_id, here.ada.principal)
    assert (await there.ada.ask(document_id)).status_code == 200


@on_both
async def test_what_one_deletes_leaves_the_others_before_its_receipt(here: Running, there: Running) -> None:
    document_id, km = await asked(here, there)
    assert (await there.ada.ask(document_id, "rag")).status_code == 200
    response = await here.ada.http.delete(f"/documents/{document_id}")
    assert response.status_code == 200, response.text
    for gateway in (here, there):
        assert gateway.engine.resident == {}
        assert km.id not in gateway.state.composites.held
        assert copies(gateway, km.id) == []
        assert copies(gateway, document_id) == []
        error_of(await gateway.ada.ask(document_id), 404)
    assert document_id not in there.state.retriever.documents
    purged = response.json()["purged"]
    assert purged["engine_gateways"] == sorted([here.id, there.id])
    assert (purged["engine_adapters"], purged["engine_slots"]) == (2, 2)
    assert (await there.ada.http.get(f"/receipts/{document_id}")).json() == response.json()


async def test_answers_on_the_other_end_first(here: Running, there: Running) -> None:
    document_id, km = await asked(here, there)
    there.engine.hold()
    asking = [asyncio.create_task(there.ada.ask(document_id, mode)) for mode in ("km", "icl")]
    await asyncio.wait_for(there.engine.until_asked(3), 10)
    deleting = asyncio.create_task(here.ada.http.delete(f"/documents/{document_id}"))
    await until(lambda: acknowledged(here) == {(document_id, here.id)})
    assert km.id not in here.engine.resident
    assert not deleting.done()
    there.engine.release()
    assert [(await task).status_code for task in asking] == [200, 200]
    assert (await asyncio.wait_for(deleting, 10)).status_code == 200


@on_both
async def test_both_may_complete_the_same_deletion(here: Running, there: Running) -> None:
    document_id, _ = await asked(here, there)
    here.registry.tombstone(here.ada.principal, document_id)
    done = await asyncio.gather(here.state.deletions.resume(), there.state.deletions.resume())
    assert sum(done) >= 1
    assert here.registry.pending_deletions() == []
    receipt = here.registry.receipt(here.ada.principal, document_id)
    assert receipt.purged["engine_gateways"] == sorted([here.id, there.id])


async def test_a_deletion_that_is_completed_later_tells_what_left_before(
    here: Running, there: Running
) -> None:
    document_id, _ = await asked(here, there)
    here.registry.tombstone(here.ada.principal, document_id)
    await here.state.letting_go.document(document_id)
    await here.state.deletions.resume()
    purged = here.registry.receipt(here.ada.principal, document_id).purged
    assert (purged["engine_adapters"], purged["engine_slots"]) == (2, 2)


async def test_nothing_is_mended_under_a_gateway_on_another_machine(site: Site, here: Running) -> None:
    with pytest.raises(ServeError, match=f"Servers on {here.state.fleet.gateway.host} use this database"):
        await asyncio.to_thread(lambda: list(repaired(site.settings("elsewhere"))))


async def test_who_has_left_completes_nothing_without_the_others(here: Running, there: Running) -> None:
    document_id, _ = await asked(here, there)
    there.engine.hold()
    asking = asyncio.create_task(there.ada.ask(document_id, "icl"))
    await asyncio.wait_for(there.engine.until_asked(2), 10)
    await here.state.fleet.leave()
    here.registry.tombstone(here.ada.principal, document_id)
    completing = asyncio.create_task(here.state.deletions.resume())
    await until(lambda: document_id in there.state.in_flight.waited_for)
    assert [one.id for one in here.registry.pending_deletions()] == [document_id]
    there.engine.release()
    assert (await asking).status_code == 200
    await asyncio.wait_for(completing, 10)
    receipt = here.registry.receipt(here.ada.principal, document_id)
    assert receipt.purged["engine_gateways"] == sorted([here.id, there.id])


@on_both
async def test_who_is_silent_is_not_waited_for_and_catches_up_before_it_answers(
    site: Site, here: Running
) -> None:
    async with site.gateway("there", beats=False) as there:
        await here.state.fleet.beat()
        document_id, km = await asked(here, there)
        kept, _ = await asked(there)
        there.engine.hold(after_tokens=1)
        asking = asyncio.create_task(there.ada.ask(document_id, stream=True))
        await asyncio.wait_for(there.engine.until_streamed(1), 10)
        site.silence(there)
        response = await here.ada.http.delete(f"/documents/{document_id}")
        assert response.json()["purged"]["engine_gateways"] == [here.id]
        assert km.id in there.engine.resident
        assert copies(there, km.id) != []
        await there.state.fleet.beat()
        # It is counted again, and answers from nothing: neither what is new, nor what runs.
        assert error_of(await there.ada.ask(kept), 503)["code"] == "gateway_out_of_touch"
        told = (await there.ada.http.get("/readyz")).json()
        assert told["missing"] == ["touch with the other gateways"]
        there.engine.release()
        assert "gateway_out_of_touch" in (await asyncio.wait_for(asking, 10)).text
        async with beating(there.state):
            await until(lambda: there.state.fleet.fence.is_open)
        assert km.id not in there.engine.resident
        assert copies(there, km.id) == copies(there, document_id) == []
        assert (await there.ada.ask(kept)).status_code == 200


async def test_who_cannot_catch_up_yet_goes_on_refusing(site: Site, here: Running) -> None:
    async with site.gateway("there", beats=False) as there:
        document_id, km = await asked(here, there)
        kept, _ = await asked(there)
        site.silence(there)
        await here.ada.http.delete(f"/documents/{document_id}")
        there.engine.running = False
        await there.state.fleet.beat()
        there.state.letting_go.begin_reconciling()
        await there.state.letting_go.settled()
        assert not there.state.fleet.fence.is_open
        there.engine.running = True
        there.state.letting_go.begin_reconciling()
        await there.state.letting_go.settled()
        assert km.id not in there.engine.resident
        assert (await there.ada.ask(kept)).status_code == 200


async def test_without_heartbeats_it_stops_by_its_own_clock(site: Site) -> None:
    async with site.gateway("here", beats=False) as here:
        document_id, _ = await asked(here)
        fence = here.state.fleet.fence
        now = fence.clock()
        fence.clock = lambda: now + FENCE_S
        for mode in ("km", "icl", "rag"):
            assert error_of(await here.ada.ask(document_id, mode), 503)["code"] == "gateway_out_of_touch"
        # What rests on no document goes on.
        body = {"model": "base", "prompt": "a b", "max_tokens": 3}
        assert (await here.ada.http.post("/v1/completions", json=body)).status_code == 200


async def test_superseded_kms_leave_all_gateways_before_they_are_purged(
    here: Running, there: Running
) -> None:
    document_id, former = await asked(here, there)
    assert (await there.ada.ask(document_id, "rag")).status_code == 200
    change = {"title": "Harbour", "text": TEXT + " It closes at nine."}
    assert (await here.ada.http.put(f"/documents/{document_id}", json=change)).status_code == 202
    await here.state.replacements.settled()
    newer = train(here.registry, document_id, here.ada.principal)
    await here.state.replacements.resume()
    assert here.registry.superseded(document_id) is None
    # Nor what it searched in of the former text.
    assert document_id not in there.state.retriever.documents
    for gateway in (here, there):
        assert former.id not in gateway.engine.resident
        assert copies(gateway, former.id) == []
        assert (await gateway.ada.ask(document_id)).json()["km_id"] == newer.id


async def test_the_receipt_of_a_km_names_who_acknowledged(here: Running, there: Running) -> None:
    document_id, km = await asked(here, there)
    response = await there.ada.http.delete(f"/documents/{document_id}/km")
    assert response.status_code == 200, response.text
    assert response.json()["purged"]["engine_gateways"] == sorted([here.id, there.id])
    assert km.id not in {**here.engine.resident, **there.engine.resident}


async def test_kes_leave_all_gateways(here: Running, there: Running, tmp_path: Path) -> None:
    document_id, km = await asked(here, there)
    ke, _, _ = here.state.ke_keeper.register(write_ke(tmp_path / "ke"), make_default=True)
    for gateway in (here, there):
        assert (await gateway.ada.ask(document_id, ke="default")).json()["ke_id"] == ke.id
        assert gateway.state.composites.held_kes == {ke.id}
    await here.state.ke_keeper.forget(ke.id)
    for gateway in (here, there):
        assert gateway.state.composites.held_kes == set()
        assert [*gateway.engine.resident] == [km.id]


async def test_who_takes_long_is_told_of_and_completed_later(
    here: Running, there: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    document_id, _ = await asked(here, there)
    there.engine.hold()
    asking = asyncio.create_task(there.ada.ask(document_id))
    await asyncio.wait_for(there.engine.until_asked(2), 10)
    monkeypatch.setattr(fleets, "PATIENCE_S", 0.05)
    pending = await here.ada.http.delete(f"/documents/{document_id}")
    assert error_of(pending, 503)["code"] == "deletion_pending"
    there.engine.release()
    await asking
    await until(lambda: (document_id, there.id) in acknowledged(here))
    assert await here.state.deletions.resume() == 1


async def test_who_left_is_not_waited_for(site: Site, here: Running) -> None:
    async with site.gateway("there") as there:
        document_id, _ = await asked(here, there)
    purged = (await here.ada.http.delete(f"/documents/{document_id}")).json()["purged"]
    assert purged["engine_gateways"] == [here.id]


async def test_one_that_is_started_again_takes_its_former_selfs_place(site: Site, here: Running) -> None:
    async with AsyncExitStack() as killed:
        former = await killed.enter_async_context(site.gateway("there", beats=False))
        former.state.fleet.has_joined = False  # it leaves no word
        async with site.gateway("there") as there:
            await here.state.fleet.beat()
            assert [one.id for one in here.state.fleet.others] == [there.id]


async def test_one_whose_engine_is_given_up_leaves(here: Running, there: Running) -> None:
    document_id, _ = await asked(here, there)
    there.engine.running = False
    there.state.engine_keeper.gave_up = True
    await until(lambda: not there.state.fleet.has_joined)
    purged = (await here.ada.http.delete(f"/documents/{document_id}")).json()["purged"]
    assert purged["engine_gateways"] == [here.id]
    error_of(await there.ada.ask(document_id, "base"), 404)


async def test_another_base_model_is_told_and_its_kms_are_refused(site: Site, here: Running) -> None:
    document_id, _ = await asked(here)
    async with site.gateway("there", fingerprint="e" * 64) as there:
        assert [one.id for one in there.state.fleet.strangers] == [here.id]
        told = (await there.ada.http.get("/readyz")).json()
        assert any("another base model" in note for note in told["notes"])
        refused = error_of(await there.ada.ask(document_id), 409)
        assert "another base model" in refused["message"]
        assert (await there.ada.ask(document_id, "auto")).json()["mode"] == "rag"


async def test_a_gateway_alone_beats_and_waits_for_nobody(
    ada: Someone, state: AppState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database lies in the data directory."""

    def called(*_: Any, **__: Any) -> None:
        pytest.fail("the fleet was asked")

    for name in ("join", "beat", "acknowledge", "acknowledged", "unacknowledged", "standing"):
        monkeypatch.setattr(Gateways, name, called)
    assert not state.registry.gateways.may_have_others
    found = keepers_of(state)
    assert "keep_in_fleet" not in {one.__name__ for one in found}
    for one in found:
        one.close()
    document_id = await ada.upload()
    train(state.registry, document_id, ada.principal)
    assert (await ada.ask(document_id)).status_code == 200
    purged = (await ada.http.delete(f"/documents/{document_id}")).json()["purged"]
    assert "engine_gateways" not in purged
