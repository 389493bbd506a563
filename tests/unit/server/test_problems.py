"""What refusals look like from outside, and in the description of the server."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event

from km_registry.registry import Registry
from tests.unit.server.conftest import TEXT, Someone, error_of


async def test_a_full_disk_is_said(ada: Someone, stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("km_registry.artifact_store.local.atomic_write", full)
    error = error_of(await ada.http.post("/documents", json={"title": "t", "text": TEXT}), 507)
    assert (error["code"], error["type"]) == ("disk_full", "server_error")
    assert stored(ada) == ([], [], 0)


async def test_a_full_database_is_said(ada: Someone, registry: Registry) -> None:
    database = registry._store.database.engine
    with database.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    # Each connection has its own bound.
    database.dispose()
    event.listen(database, "connect", lambda made, _: made.execute(f"PRAGMA max_page_count={pages}").close())
    refused = [
        response
        for number in range(60)
        if (
            response := await ada.http.post(
                "/documents", json={"title": "t" * 300, "text": f"{TEXT} {number}"}
            )
        )
        and response.status_code != 202
    ]
    assert {error_of(response, 507)["code"] for response in refused} == {"disk_full"}


def test_every_refusal_is_described_in_its_shape(app: FastAPI) -> None:
    spec = app.openapi()
    operations = [operation for path in spec["paths"].values() for operation in path.values()]
    for operation in (one for one in operations if "security" in one):
        if "requestBody" in operation:
            assert {"400", "401", "413", "422", "429", "503", "507"} <= set(operation["responses"])
        refusals = [found for status, found in operation["responses"].items() if status >= "400"]
        assert all("ErrorOut" in str(found) for found in refusals if "content" in found), operation
    assert "ValidationError" not in spec["components"]["schemas"]
