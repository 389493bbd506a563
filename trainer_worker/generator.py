"""Client of an OpenAI-compatible completion endpoint: this server's own, or a stronger model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import httpx
import stamina

from km_registry.errors import KMError

#: Texts asked for at a time: enough to keep the engine busy; few enough that users' questions find a seat in
#: its batch (priority orders the queue, it does not free a seat) and that progress is seen.
_TOGETHER = 32


class GeneratorError(KMError):
    """The generator of synthetic text does not answer."""


class Generator:
    """Asks for continuations of prompts. A context manager."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        model: str,
        timeout: float,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._model = model
        self._url = url.rstrip("/")
        self._http = httpx.Client(headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def complete(
        self,
        prompts: Sequence[str],
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop: Sequence[str] = (),
        on_progress: Callable[[int], None] = lambda _done: None,
    ) -> list[list[str]]:
        """`n` continuations of each prompt, in order. `on_progress` gets the prompts done so far.

        Raises:
            GeneratorError: the endpoint refuses, or fails after retries.
        """
        results: list[list[str]] = []
        size = max(1, _TOGETHER // n)
        for start in range(0, len(prompts), size):
            batch = list(prompts[start : start + size])
            body = {
                "model": self._model,
                "prompt": batch,
                "n": n,
                "max_tokens": max_tokens,
                "temperature": temperature,
                # Apart for every batch: equal seeds would make like prompts continue alike.
                "seed": seed + start,
                "stop": list(stop) or None,
                # The chat template has put the special tokens in already.
                "add_special_tokens": False,
            }
            texts = self._post(body)
            if len(texts) != n * len(batch):
                raise GeneratorError(
                    f"{self._url} returned {len(texts)} texts where {n * len(batch)} were asked for"
                )
            results += [texts[row * n : (row + 1) * n] for row in range(len(batch))]
            on_progress(len(results))
        return results

    def _post(self, body: dict[str, Any]) -> list[str]:
        try:
            for attempt in stamina.retry_context(
                on=_passing, attempts=5, timeout=None, wait_initial=0.5, wait_max=10.0
            ):
                with attempt:
                    response = self._http.post(f"{self._url}/completions", json=body)
                    response.raise_for_status()
        except httpx.HTTPStatusError as error:
            raise GeneratorError(
                f"{self._url} answered {error.response.status_code}: {error.response.text[:300]}"
            ) from error
        except httpx.HTTPError as error:
            raise GeneratorError(
                f"{self._url} cannot be reached ({error}); is the server running, is KM_GENERATOR_URL right?"
            ) from error
        try:
            choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
            return [str(choice["text"]) for choice in choices]
        except (ValueError, KeyError, TypeError) as error:
            raise GeneratorError(
                f"{self._url} does not answer as an OpenAI-compatible endpoint "
                f"({type(error).__name__}: {error}); is KM_GENERATOR_URL right?"
            ) from error


def _passing(error: Exception) -> bool:
    """Whether the failure may pass by itself."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)
