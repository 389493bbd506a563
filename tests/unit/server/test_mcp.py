"""The Model Context Protocol with its own client, over the loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from httpx import AsyncClient
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from km_registry.registry import Registry
from tests.unit.server.conftest import TEXT, Someone, error_of, train

Connect = Callable[[Someone], Any]


@pytest.fixture
def connect(url: str) -> Connect:
    @asynccontextmanager
    async def connected(someone: Someone) -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {someone.key}"}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        ):
            yield client

    return connected


async def test_a_model_lists_documents_and_asks_one(
    connect: Connect, ada: Someone, registry: Registry
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    async with connect(ada) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"list_documents", "ask"}
        assert set(tools["ask"].input_schema["required"]) == {"document_id", "question"}
        listed = (await client.call_tool("list_documents", {})).structured_content
        assert [(one["id"], one["state"]) for one in listed["documents"]] == [(document_id, "succeeded")]
        asked = {"document_id": document_id, "question": "When does it open?", "mode": "km+rag"}
        answer = (await client.call_tool("ask", asked)).structured_content
    direct = (await ada.ask(document_id, "km+rag")).json()
    assert (answer["answer"], answer["km_id"]) == (direct["answer"], direct["km_id"])
    assert answer["passages"][0]["text"] in TEXT


async def test_the_access_rule_is_the_same(
    connect: Connect, ada: Someone, bob: Someone, registry: Registry
) -> None:
    document_id = await ada.upload()
    asked = {"document_id": document_id, "question": "When?"}
    async with connect(bob) as client:
        assert (await client.call_tool("list_documents", {})).structured_content["documents"] == []
        refused = await client.call_tool("ask", asked)
        unknown = await client.call_tool("ask", asked | {"document_id": "doc_none"})
        assert refused.is_error
        assert refused.content[0].text == unknown.content[0].text
        await ada.http.post(f"/documents/{document_id}/grants", json={"user": "Bob"})
        assert not (await client.call_tool("ask", asked)).is_error


async def test_a_refusal_says_what_to_do(connect: Connect, ada: Someone) -> None:
    document_id = await ada.upload()
    async with connect(ada) as client:
        refused = await client.call_tool(
            "ask", {"document_id": document_id, "question": "When?", "mode": "km"}
        )
        assert (refused.is_error, "queued" in refused.content[0].text) == (True, True)
        invalid = await client.call_tool("ask", {"document_id": document_id, "question": "", "k": 0})
        assert invalid.is_error


async def test_without_a_key_there_is_nothing(anyone: AsyncClient) -> None:
    error_of(await anyone.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}), 401)
