"""Client of an OpenAI-compatible endpoint that writes texts: this server's own, or a stronger model's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import stamina

from km_registry.config import GeneratorEndpoint
from km_registry.errors import KMError
from km_registry.prompts import ChatTokenizer, Message, render

#: Texts asked for at a time: enough to keep the engine busy; few enough that users' questions find a seat in
#: its batch (priority orders the queue, it does not free a seat) and that progress is seen.
TOGETHER = 32
#: Requests on the way at a time; most hold several texts.
_REQUESTS = 16
#: They wait about 45 seconds in all: an engine that is started again is back by then.
_ATTEMPTS = 9


class GeneratorError(KMError):
    """The generator of synthetic text does not answer."""

    def __init__(self, message: str | None = None, *, brief: str = "the generator does not answer") -> None:
        super().__init__(message)
        #: What may be shown to everyone: it names no address and quotes nothing.
        self.brief = brief


class GeneratorClosedError(KMError):
    """The generator was closed while it was waited for."""


class _NonsenseError(GeneratorError):
    """The generator answers, but not as an OpenAI-compatible endpoint does."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A text to be written: the conversation that asks for it, how it begins, and the seed of its draw."""

    messages: tuple[Message, ...]
    begin: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """A text as it came back, without its given beginning. `cut`: the limit ended it, not its writer."""

    text: str
    cut: bool = False


class Generator:
    """Has texts written, many at a time. A context manager. Threads may share it, and generators may share
    `seats`.

    With a `tokenizer` the endpoint is asked in that model's chat format; without one, `completions` get plain
    paragraphs, since another model's format is not known here. `traceparent` goes with every request.
    """

    def __init__(
        self,
        endpoint: GeneratorEndpoint,
        tokenizer: ChatTokenizer | None = None,
        *,
        seats: Seats | None = None,
        transport: httpx.BaseTransport | None = None,
        traceparent: str | None = None,
    ) -> None:
        key = endpoint.key.get_secret_value()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if traceparent is not None:
            headers["traceparent"] = traceparent
        self._endpoint = endpoint
        self._tokenizer = tokenizer
        self._http = httpx.Client(
            headers=headers,
            timeout=endpoint.timeout,
            transport=transport,
            limits=httpx.Limits(max_connections=_REQUESTS),
        )
        self._pool = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="generator")
        self._seats = seats or Seats()
        self._closed: Future[None] = Future()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ask for nothing more, and end every wait for an answer; by any thread."""
        if self._closed.done():
            return
        self._closed.set_result(None)
        # Nobody waits for a request that is on the way: the work it was for has ended.
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    @property
    def model(self) -> str:
        """Name of the model that writes."""
        return self._endpoint.model

    def complete(
        self, asks: Sequence[Ask], *, max_tokens: int, temperature: float, stop: Sequence[str] = ()
    ) -> list[Draft]:
        """A draft for each ask, in order. Each depends on its ask alone, however many are asked together.

        Raises:
            GeneratorError: the endpoint refuses, or fails after retries.
            GeneratorClosedError: another thread closed this generator.
        """
        if self._closed.done():
            raise GeneratorClosedError
        found: list[Draft | None] = [None] * len(asks)
        options = {"max_tokens": max_tokens, "temperature": temperature}
        requests = list(self._requests(asks))
        futures = [
            self._pool.submit(self._ask, [asks[index] for index in part], options, stop) for part in requests
        ]
        try:
            self._wait(futures)
        finally:
            for future in futures:
                future.cancel()
        for part, future in zip(requests, futures, strict=True):
            for index, draft in zip(part, future.result(), strict=True):
                found[index] = draft
        return [draft for draft in found if draft is not None]

    def _wait(self, futures: Sequence[Future[list[Draft]]]) -> None:
        """Until all are done, one has failed, or the generator is closed."""
        waiting: set[Future[Any]] = set(futures)
        while waiting:
            done, _ = wait({*waiting, self._closed}, return_when=FIRST_COMPLETED)
            if self._closed in done:
                raise GeneratorClosedError
            for future in done:
                future.result()
            waiting -= done

    def _requests(self, asks: Sequence[Ask]) -> Iterator[list[int]]:
        """Numbers of asks that go into one request: chat takes one, completions those of one seed."""
        if self._endpoint.api == "chat":
            yield from ([index] for index in range(len(asks)))
            return
        by_seed: dict[int, list[int]] = {}
        for index, ask in enumerate(asks):
            by_seed.setdefault(ask.seed, []).append(index)
        for indices in by_seed.values():
            yield from (indices[start : start + TOGETHER] for start in range(0, len(indices), TOGETHER))

    def _ask(self, asks: list[Ask], options: dict[str, Any], stop: Sequence[str]) -> list[Draft]:
        chat = self._endpoint.api == "chat"
        body = options | {"model": self._endpoint.model, "seed": asks[0].seed}
        if chat:
            # No stop: a chat answer may begin with what would end a continuation.
            body["messages"] = list(asks[0].messages)
        else:
            body["prompt"] = [self._prompt(ask) for ask in asks]
            body["stop"] = list(stop) or None
            if self._tokenizer is not None:
                # The chat template has put the special tokens in already. Other endpoints may refuse this.
                body["add_special_tokens"] = False
        with self._seats.taken(len(asks)):
            drafts = self._post("/chat/completions" if chat else "/completions", body, len(asks))
        return [
            _without(draft, ask.begin) if chat else draft for draft, ask in zip(drafts, asks, strict=True)
        ]

    def _prompt(self, ask: Ask) -> str:
        return render(self._tokenizer or _PLAIN, list(ask.messages)) + ask.begin

    def _post(self, path: str, body: dict[str, Any], count: int) -> list[Draft]:
        try:
            for attempt in stamina.retry_context(
                on=_passing,
                attempts=_ATTEMPTS,
                # What fails at once is tried every time, what hangs until the client's timeout twice.
                timeout=2 * self._endpoint.timeout,
                wait_initial=0.5,
                wait_max=10.0,
            ):
                with attempt:
                    response = self._http.post(f"{self._endpoint.url}{path}", json=body)
                    response.raise_for_status()
                    return self._drafts(response, count)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            raise GeneratorError(
                f"{self._endpoint.url} answered {status}: {self._safe(error.response.text)}",
                brief=f"the generator answered {status}",
            ) from error
        except httpx.HTTPError as error:
            slow = isinstance(error, httpx.TimeoutException)
            raise GeneratorError(
                f"{self._endpoint.url} cannot be reached ({type(error).__name__}: {error}); is it running, "
                f"and is KM_GENERATOR_URL or KM_GENERATORS right?",
                brief="the generator took too long" if slow else "the generator could not be reached",
            ) from error
        raise AssertionError("stamina leaves with a result or an error")

    def _drafts(self, response: httpx.Response, count: int) -> list[Draft]:
        try:
            choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
            drafts = [_draft(choice) for choice in choices]
        except (ValueError, KeyError, TypeError) as error:
            raise _NonsenseError(
                f"{self._endpoint.url} does not answer as an OpenAI-compatible endpoint "
                f"({type(error).__name__}); is KM_GENERATOR_URL or KM_GENERATORS right?",
                brief="the generator's answers made no sense",
            ) from error
        if len(drafts) != count:
            raise _NonsenseError(
                f"{self._endpoint.url} returned {len(drafts)} texts where {count} were asked for",
                brief="the generator returned another number of texts than asked for",
            )
        return drafts

    def _safe(self, text: str) -> str:
        """The beginning of what the endpoint said. Some quote the key they refuse."""
        key = self._endpoint.key.get_secret_value()
        return (text.replace(key, "…") if key else text)[:300]


class Seats:
    """Bounds the texts that are on the way, over all threads."""

    def __init__(self, count: int = TOGETHER) -> None:
        #: Texts that may still be asked for.
        self.free = count
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Waits until so many seats are free, and has them."""
        with self._changed:
            self._changed.wait_for(lambda: self.free >= count)
            self.free -= count
        try:
            yield
        finally:
            with self._changed:
                self.free += count
                self._changed.notify_all()


class _Plain:
    """Stands for a model whose chat format is not known."""

    chat_template = None


_PLAIN: Any = _Plain()


def _draft(choice: dict[str, Any]) -> Draft:
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    # A chat answer may have no content at all.
    return Draft(str(text or ""), choice.get("finish_reason") == "length")


def _without(draft: Draft, begin: str) -> Draft:
    return Draft(draft.text.strip().removeprefix(begin.strip()), draft.cut)


def _passing(error: Exception) -> bool:
    """Whether the failure may pass by itself."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, _NonsenseError))
