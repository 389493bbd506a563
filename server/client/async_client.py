"""The client for asyncio: `server.client.sync`, awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from server.client import calls
from server.client.archive import pack, unpack
from server.client.async_access import AsyncAccessCalls
from server.client.calls import Call, T
from server.client.environment import api_key_of, require_trained, url_of
from server.client.errors import ClientError, refusal, unreachable
from server.client.events import AnswerPieces, EventReader, ServerEvent
from server.client.retrying import attempts
from server.client.types import (
    Answer,
    DocumentAndJob,
    DocumentDetail,
    DocumentPage,
    JobStarted,
    KEDeleted,
    KERegistered,
    KnowledgeExtractor,
    ListedDocument,
    Receipt,
    Recipes,
    Removal,
)


class AsyncKM(AsyncAccessCalls):
    """One server, with one API key; without arguments those that KM_URL and KM_API_KEY name.

    Every method raises ClientError. What may pass (no server yet, "come back in 3 s") is tried again
    `retries` times. A context manager; thread-safe.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retries: int = 3,
        timeout_s: float = 300.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=url_of(url),
            headers={"Authorization": f"Bearer {api_key_of(api_key)}"},
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # --- documents -----------------------------------------------------------------------------------------

    async def add(self, title: str, text: str, *, recipe: dict[str, Any] | None = None) -> DocumentAndJob:
        """Upload a document; its KM is trained in the background."""
        return await self._do(calls.upload(None, title=title, text=text, recipe=recipe))

    async def add_file(
        self, file: Path, *, title: str | None = None, recipe: dict[str, Any] | None = None
    ) -> DocumentAndJob:
        """Upload a file of a type that the server takes. OSError when it cannot be read."""
        return await self._do(calls.upload_file(None, *calls.file_of(file), title, recipe))

    async def add_content(
        self, name: str, content: bytes, *, title: str | None = None, recipe: dict[str, Any] | None = None
    ) -> DocumentAndJob:
        """Upload what a file of that name would hold; of any type that the server takes."""
        return await self._do(calls.upload_file(None, name, content, title, recipe))

    async def update(
        self, document_id: str, text: str, *, title: str | None = None, recipe: dict[str, Any] | None = None
    ) -> DocumentAndJob:
        """Give a document a new version."""
        return await self._do(calls.upload(document_id, text=text, title=title, recipe=recipe))

    async def update_file(
        self, document_id: str, file: Path, *, title: str | None = None, recipe: dict[str, Any] | None = None
    ) -> DocumentAndJob:
        """Give a document a new version from a file. OSError when it cannot be read."""
        return await self._do(calls.upload_file(document_id, *calls.file_of(file), title, recipe))

    async def train(self, document_id: str, *, recipe: dict[str, Any] | None = None) -> JobStarted:
        """Train a document again, with this recipe or after a failure."""
        return await self._do(calls.post(f"/documents/{document_id}/train", recipe=recipe))

    async def cancel(self, document_id: str) -> JobStarted:
        """End the document's training; the KM that there is answers on."""
        return await self._do(calls.post(f"/documents/{document_id}/cancel"))

    async def prioritise(self, document_id: str, priority: str) -> JobStarted:
        """Order a waiting training among your own: low, normal, high."""
        path = f"/documents/{document_id}/priority"
        return await self._do(Call("PUT", path, {"json": {"priority": priority}}))

    async def recipes(self) -> Recipes:
        """What an upload may ask of its training."""
        return await self._do(calls.get("/recipes"))

    async def documents(self, before: str | None = None, limit: int | None = None) -> DocumentPage:
        """Your documents and those shared with you, newest first; those older than `before`."""
        return await self._do(calls.get("/documents", before=before, limit=limit))

    async def all_documents(self) -> AsyncGenerator[ListedDocument, None]:
        """Every document that you may read, newest first, page after page."""
        page = await self.documents()
        while True:
            for one in page["documents"]:
                yield one
            if page["next_before"] is None:
                return
            page = await self.documents(page["next_before"])

    async def document(self, document_id: str) -> DocumentDetail:
        """One document with its job and its KM."""
        return await self._do(calls.get(f"/documents/{document_id}"))

    async def delete(self, document_id: str) -> Receipt:
        """Delete a document and everything made of it."""
        return await self._do(calls.delete(f"/documents/{document_id}"))

    async def delete_km(self, document_id: str) -> Removal:
        """Delete a document's KM, and keep the document."""
        return await self._do(calls.delete(f"/documents/{document_id}/km"))

    async def delete_version(self, document_id: str, version: int) -> Removal:
        """Delete a former version of a document."""
        return await self._do(calls.delete(f"/documents/{document_id}/versions/{version}"))

    async def export(self, document_id: str, directory: Path, *, text: bool = False) -> Path:
        """Write the document's KM into a new directory, as PEFT reads it; with `text` it can be imported.
        OSError when it cannot be written."""
        return unpack(await self._do(calls.export(document_id, text=text)), directory)

    async def import_km(self, directory: Path, *, title: str | None = None) -> DocumentDetail:
        """A new document with the KM that was exported with its text. OSError when it cannot be read."""
        return await self._do(calls.import_km(pack(directory), title))

    # --- asking --------------------------------------------------------------------------------------------

    async def ask(self, document_id: str, question: str, **options: Any) -> Answer:
        """Ask a document; options are mode, ke, k, max_tokens, temperature, seed."""
        return await self._do(calls.ask(document_id, question, **options))

    def ask_stream(self, document_id: str, question: str, **options: Any) -> AsyncAnswerStream:
        """Ask a document, piece by piece; options as of `ask`."""
        call: Call[Any] = calls.ask(document_id, question, stream=True, **options)
        return AsyncAnswerStream(self._stream(call))

    # --- following a training ------------------------------------------------------------------------------

    async def events(self, document_id: str) -> AsyncGenerator[ServerEvent, None]:
        """What has happened to the document's job, then what happens, until the job is finished.

        A connection that breaks is made again, and nothing is told twice.
        """
        seen: str | None = None
        failures = 0
        while True:
            try:
                async for event in self._stream(calls.events(document_id, seen)):
                    seen, failures = event.id or seen, 0
                    yield event
            except ClientError as error:
                failures += 1
                if error.status is not None or failures > self._retries:
                    raise
            else:
                return

    async def wait(self, document_id: str) -> DocumentDetail:
        """Wait until the document's training is over. TrainingError when it ended without a KM."""
        async for _ in self.events(document_id):
            pass
        found = await self.document(document_id)
        require_trained(document_id, found["job"])
        return found

    # --- KEs -----------------------------------------------------------------------------------------------

    async def kes(self) -> list[KnowledgeExtractor]:
        """The KEs that are registered, by name, newest version first."""
        return await self._do(calls.get("/kes", calls.picking("kes")))

    async def register_ke(self, directory: str, *, default: bool = False) -> KERegistered:
        """Register the KE in a directory on the server."""
        return await self._do(calls.post("/kes", repeatable=True, directory=directory, default=default))

    async def set_default_ke(self, ke_id: str) -> KnowledgeExtractor:
        """Make a KE the default for its base model."""
        return await self._do(Call("PUT", f"/kes/{ke_id}/default"))

    async def delete_ke(self, ke_id: str) -> KEDeleted:
        """Delete a KE and every composite made of it."""
        return await self._do(calls.delete(f"/kes/{ke_id}"))

    # --- requests ------------------------------------------------------------------------------------------

    async def _do(self, call: Call[T]) -> T:
        async for attempt in attempts(self._retries, repeatable=call.repeatable):
            with attempt:
                return call.pick(await self._once(call))
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, call: Call[T]) -> Any:
        try:
            response = await self._http.request(call.method, call.path, **call.options)
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, error) from error
        if response.is_error:
            raise refusal(response)
        if call.raw:
            return response.content
        return response.json() if response.content else {}

    async def _stream(self, call: Call[Any]) -> AsyncGenerator[ServerEvent, None]:
        response = await self._begun(call)
        reader = EventReader()
        try:
            async for line in response.aiter_lines():
                if (event := reader.feed(line)) is not None:
                    yield event
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, error) from error
        finally:
            await response.aclose()

    async def _begun(self, call: Call[Any]) -> httpx.Response:
        async for attempt in attempts(self._retries, repeatable=True):
            with attempt:
                return await self._begin(call)
        raise AssertionError("the last attempt returns or raises")

    async def _begin(self, call: Call[Any]) -> httpx.Response:
        request = self._http.build_request(call.method, call.path, **call.options)
        try:
            response = await self._http.send(request, stream=True)
            if response.is_error:
                await response.aread()
                raise refusal(response)
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, error) from error
        return response


class AsyncAnswerStream:
    """The text of an answer as it comes. Once it is over, `answer` is all that `AsyncKM.ask` returns.

    Iterating raises ClientError when the answer is cut short; leaving early ends the generation.
    """

    def __init__(self, events: AsyncIterator[ServerEvent]) -> None:
        self._events = events
        self._pieces = AnswerPieces()

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        async for event in self._events:
            if text := self._pieces.take(event):
                yield text
        self._pieces.whole()

    @property
    def answer(self) -> Answer:
        """The whole answer. ClientError before it is there."""
        return self._pieces.whole()
