"""Retrieval: a document's index is made once, kept, searched, and forgotten with the document."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from km_registry.chunking import chunks
from km_registry.errors import ArtifactError, NotFoundError, StoreUnavailableError
from km_registry.registry import Registry
from km_registry.tracing import span
from server.retrieval.base import Embedder, Passage, RetrievalUnavailableError
from server.retrieval.cache import IndexCache, Key
from server.retrieval.embedding import Embedding, RetrievalState
from server.retrieval.index import Origin, PassageIndex, Span

_log = structlog.get_logger(__name__)

#: Tokens of the passages that are embedded in one go: about 0.15 s, the most that a question waits for.
_SLICE_TOKENS = 512
_NOT_YET = (
    "The passages of this document are still being made. Ask again in a moment, or ask with mode icl or km "
    "meanwhile."
)


@dataclass(frozen=True, slots=True)
class RetrievalConfig:
    """How texts are cut, and the bounds. `patience_s`: longest that a question waits for its passages."""

    passage_tokens: int
    cache_bytes: int = 256 * 2**20
    patience_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The passages in the order of the prompt, the best one last, and how many the document has in all."""

    passages: tuple[Passage, ...]
    of: int


class Retriever:
    """Finds passages, for one event loop. `count_tokens` is the base model's; `cut_by` identifies it."""

    def __init__(
        self,
        registry: Registry,
        load_embedder: Callable[[], Embedder] | None,
        count_tokens: Callable[[str], int],
        cut_by: str,
        config: RetrievalConfig,
    ) -> None:
        self._registry = registry
        self._embedding = Embedding(load_embedder)
        self._count_tokens = count_tokens
        self._cut_by = cut_by
        self._config = config
        self._cache = IndexCache(config.cache_bytes)
        self._making: dict[Key, asyncio.Task[PassageIndex]] = {}
        self._begun: dict[asyncio.Task[None], str] = {}
        self._write_lock = asyncio.Lock()

    @property
    def state(self) -> RetrievalState:
        """Whether passages can be found."""
        return self._embedding.state

    @property
    def reason(self) -> str | None:
        """Why there is no retrieval, and what to do, when there is none."""
        return self._embedding.reason

    def start(self) -> None:
        """Begin to load the embedder, in the background."""
        self._embedding.start()

    async def ready(self) -> None:
        """Wait until the embedder is loaded. Raises RetrievalUnavailableError when it cannot be."""
        await self._embedding.embedder()

    def begin(self, document_id: str) -> None:
        """Have the document's passages made in the background; returns at once. A failure is logged."""
        if self.reason is None:
            task = asyncio.create_task(self._prepare(document_id), name=f"passages of {document_id}")
            self._begun[task] = document_id
            task.add_done_callback(self._begun.pop)

    async def search(
        self, document_id: str, question: str, k: int, *, version: int | None = None
    ) -> Retrieved:
        """The `k` best passages of the document's newest version, or of the named one; all if it has fewer.

        Waits for the index when it is still being made. The caller has asked whether it may be read.

        Raises:
            RetrievalUnavailableError: there is no embedder, or the index takes too long.
            NotFoundError: the document was deleted meanwhile.
            ArtifactError: its text is damaged.
        """
        if self.reason is not None:
            raise RetrievalUnavailableError(self.reason)
        with span("retrieve", document_id=document_id, k=k) as one:
            text, key = await self._text(document_id, version)
            index = await self._index(key, text)
            vector_D = await self._embedding.question(question)
            found = await asyncio.to_thread(index.search, vector_D, k)
            one.set(passages=len(found.spans), of=len(index))
        passages = [
            Passage(text[start:end], round(score, 4), start, end)
            for (start, end), score in zip(found.spans, found.scores, strict=True)
        ]
        return Retrieved(tuple(reversed(passages)), len(index))

    async def forget(self, document_id: str) -> None:
        """Stop what is being made of the document and drop what is in memory.

        Call it once the document is tombstoned and no answer of it is in flight any more, before its files
        are purged: then nothing of it is in memory or written afterwards.
        """
        begun = [task for task, of in self._begun.items() if of == document_id]
        making = [task for key, task in self._making.items() if key.document_id == document_id]
        await _stopped([*begun, *making])
        self._cache.drop(document_id)

    def drop(self, document_id: str) -> None:
        """Drop what is in memory of the document's versions. What of it is asked again is read again."""
        self._cache.drop(document_id)

    @property
    def documents(self) -> frozenset[str]:
        """Of which documents something is in memory, or being made."""
        making = {key.document_id for key in self._making}
        return self._cache.documents | making | frozenset(self._begun.values())

    async def settled(self) -> None:
        """Wait until nothing is being made any more."""
        while tasks := [*self._begun, *self._making.values()]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Stop everything. A half-made index is made anew when it is needed."""
        await _stopped([*self._begun, *self._making.values()])
        await self._embedding.close()

    async def _prepare(self, document_id: str) -> None:
        try:
            text, key = await self._text(document_id)
            await asyncio.wait({self._task(key, text)})  # its failure is logged by its own callback
        except (NotFoundError, ArtifactError) as error:
            _log.info("no passages made", document_id=document_id, error=type(error).__name__)

    async def _text(self, document_id: str, version: int | None = None) -> tuple[str, Key]:
        """A version's text, the newest one's by default, and the key of its index: never of another."""
        text = await asyncio.to_thread(self._registry.read_text, document_id, version)
        return text, Key(document_id, await asyncio.to_thread(_sha256, text))

    async def _index(self, key: Key, text: str) -> PassageIndex:
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        task = self._task(key, text)
        # Not awaited itself: a question may be given up, while the index is made for those to come.
        done, _ = await asyncio.wait({task}, timeout=self._config.patience_s)
        if not done:
            raise RetrievalUnavailableError(_NOT_YET)
        if task.cancelled():
            raise NotFoundError  # that is how `forget` stops it
        return task.result()

    def _task(self, key: Key, text: str) -> asyncio.Task[PassageIndex]:
        """What makes the index; one for however many wait for it."""
        task = self._making.get(key)
        if task is None:
            task = asyncio.create_task(self._made(key, text), name=f"index of {key.document_id}")
            self._making[key] = task
            task.add_done_callback(partial(self._finished, key))
        return task

    def _finished(self, key: Key, task: asyncio.Task[PassageIndex]) -> None:
        del self._making[key]
        error = None if task.cancelled() else task.exception()
        # A document that was deleted meanwhile is no problem, and why there is no embedder is said already.
        if error is not None and not isinstance(error, (NotFoundError, RetrievalUnavailableError)):
            _log.warning("no passages made", document_id=key.document_id, error=type(error).__name__)

    async def _made(self, key: Key, text: str) -> PassageIndex:
        """The index from disk, or else made anew and written."""
        embedder = await self._embedding.embedder()
        origin = Origin(key.text_sha256, embedder.identity, self._cut_by, self._config.passage_tokens)
        index = await asyncio.to_thread(self._read, key, origin)
        if index is None:
            began = time.perf_counter()
            spans = await asyncio.to_thread(self._cut, text)
            pieces = [text[start:end] for start, end in spans]
            per_slice = max(1, _SLICE_TOKENS // self._config.passage_tokens)
            index = PassageIndex.build(spans, await self._embedding.passages(pieces, per_slice))
            if not await _to_the_end(asyncio.create_task(self._write(key, origin, index))):
                return index  # for those who asked before the newer version came
            seconds = round(time.perf_counter() - began, 2)
            _log.info("passages made", document_id=key.document_id, passages=len(index), seconds=seconds)
        self._cache.drop(key.document_id)  # older versions
        self._cache.put(key, index)
        return index

    def _cut(self, text: str) -> list[Span]:
        pieces = chunks(text, self._count_tokens, chunk_tokens=self._config.passage_tokens)
        return [(piece.start, piece.end) for piece in pieces]

    def _read(self, key: Key, origin: Origin) -> PassageIndex | None:
        def check(directory: Path) -> None:
            PassageIndex.read(directory, origin)

        try:
            with self._registry.held_passages(key.document_id, key.text_sha256, check) as directory:
                return PassageIndex.read(directory, origin)
        except FileNotFoundError:
            return None
        except (ArtifactError, StoreUnavailableError) as error:
            _log.info("passages are made anew", document_id=key.document_id, reason=str(error))
            return None

    async def _write(self, key: Key, origin: Origin, index: PassageIndex) -> bool:
        """Keep the index on disk; False when a newer version came meanwhile. One at a time."""
        async with self._write_lock:
            _, newest = await self._text(key.document_id)
            if newest != key:
                return False
            try:
                await asyncio.to_thread(self._keep, key, origin, index)
            except (OSError, StoreUnavailableError) as error:
                # It serves from memory; the next start makes it anew.
                _log.warning("passages not kept", document_id=key.document_id, error=type(error).__name__)
            return True

    def _keep(self, key: Key, origin: Origin, index: PassageIndex) -> None:
        index.write(self._registry.passages_dir(key.document_id) / key.text_sha256, origin)
        self._registry.share_passages(key.document_id, key.text_sha256)


async def _to_the_end(task: asyncio.Task[bool]) -> bool:
    """Wait for the task, also when the waiting is cancelled: a thread that writes cannot be stopped, and
    what it writes must not appear after whoever cancelled has gone on."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()


async def _stopped(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
