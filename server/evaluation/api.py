"""The HTTP API as the evaluation uses it: many users, many requests at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from server.client import EventReader, ServerEvent
from server.evaluation.documents import EvaluationError

#: Before an event stream that broke off is taken up again.
_RECONNECT_S = 1.0
#: Attempts at a stream that gives nothing, one after the other.
_RECONNECTS = 30


class RefusedError(EvaluationError):
    """The server refused a request, and would again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """One server. Every method but `create_user` takes the key of the user on whose behalf it asks.

    Raises RefusedError where the server refuses (4xx, and 503 for what it was set up without), and
    EvaluationError where it is not there or has failed.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def create_user(self, admin_key: str, name: str) -> str:
        """A new user's API key."""
        try:
            created = await self._json(admin_key, "POST", "/users", json={"name": name})
        except RefusedError as error:
            if error.status not in (401, 403):
                raise
            raise EvaluationError(
                f"{error} An evaluation makes a user for each row, so it needs an administrator's key: "
                "--key or KM_API_KEY."
            ) from error
        return str(created["api_key"])

    async def register_ke(self, admin_key: str, directory: Path) -> None:
        """Have the server know a KE in a directory of its machine; it may know it already."""
        await self._json(admin_key, "POST", "/kes", json={"directory": str(directory)})

    async def upload(self, key: str, title: str, text: str, recipe: dict[str, Any]) -> str:
        """The id of the document, which is the same one where this user has sent its text before."""
        sent = {"title": title, "text": text, "recipe": recipe}
        added = await self._json(key, "POST", "/documents", json=sent)
        return str(added["document"]["id"])

    async def detail(self, key: str, document_id: str) -> dict[str, Any]:
        """{document, job, km}."""
        return await self._json(key, "GET", f"/documents/{document_id}")

    async def retrain(self, key: str, document_id: str) -> None:
        """Train again what has failed or was cancelled; what is being trained already goes on."""
        try:
            await self._json(key, "POST", f"/documents/{document_id}/train")
        except RefusedError as error:
            if error.status != 409:
                raise

    async def delete(self, key: str, document_id: str) -> None:
        """Delete a document; one that is gone already is as good."""
        try:
            await self._json(key, "DELETE", f"/documents/{document_id}")
        except RefusedError as error:
            if error.status != 404:
                raise

    async def follow(self, key: str, document_id: str) -> AsyncIterator[ServerEvent]:
        """What happens to the document until its job is finished, from the beginning, each event once or more
        often: a stream that breaks off is taken up again."""
        silent = 0
        while True:
            try:
                async for event in self._events(key, document_id):
                    silent = 0
                    yield event
            except httpx.TransportError as error:
                if silent >= _RECONNECTS:
                    raise self._unreachable(error) from error
            if await self._finished(key, document_id, silent):
                return
            silent += 1
            await asyncio.sleep(_RECONNECT_S)

    async def answer(self, key: str, question: dict[str, Any]) -> dict[str, Any]:
        """POST /answer."""
        return await self._json(key, "POST", "/answer", json=question)

    async def logprobs(
        self, key: str, model: str, prompts: Sequence[Sequence[int]]
    ) -> list[list[float | None]]:
        """For each prompt, given as token ids, the log-probability of each token after those before it."""
        asked = {"model": model, "prompt": list(prompts), "max_tokens": 0, "echo": True, "logprobs": 1}
        completed = await self._json(key, "POST", "/v1/completions", json=asked | {"temperature": 0})
        choices = sorted(completed["choices"], key=lambda one: int(one["index"]))
        return [one["logprobs"]["token_logprobs"] for one in choices]

    async def _events(self, key: str, document_id: str) -> AsyncIterator[ServerEvent]:
        request = self._http.build_request(
            "GET",
            f"/documents/{document_id}/events",
            headers=_authorised(key),
            # A job may be silent while it waits for its turn.
            timeout=httpx.Timeout(10.0, read=None),
        )
        response = await self._http.send(request, stream=True)
        try:
            if response.is_error:
                await response.aread()
                raise _failure(response)
            reader = EventReader()
            async for line in response.aiter_lines():
                if event := reader.feed(line):
                    yield event
        finally:
            await response.aclose()

    async def _finished(self, key: str, document_id: str, silent: int) -> bool:
        """Whether the document's latest job is; a server that is just not there is asked again later."""
        try:
            detail = await self.detail(key, document_id)
        except RefusedError:
            raise
        except EvaluationError:
            if silent >= _RECONNECTS:
                raise
            return False
        return detail["job"]["state"] in ("succeeded", "failed", "cancelled")

    async def _json(self, key: str, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, headers=_authorised(key), **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _failure(response)
        body: dict[str, Any] = response.json()
        return body

    def _unreachable(self, error: httpx.TransportError) -> EvaluationError:
        return EvaluationError(
            f"No answer from {self._http.base_url} ({type(error).__name__} {error}). Start the server again; "
            "the same command then goes on."
        )


def _authorised(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _failure(response: httpx.Response) -> EvaluationError:
    try:
        error = response.json()["error"]
        message, code = error["message"], error.get("code")
    except (ValueError, LookupError, TypeError):
        message, code = response.reason_phrase, None
    what = f"{response.request.method} {response.request.url.path}: {message} (HTTP {response.status_code})"
    refused = response.is_client_error or code == "retrieval_unavailable"
    return RefusedError(what, response.status_code) if refused else EvaluationError(what)
