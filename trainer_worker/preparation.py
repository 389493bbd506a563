"""What a document's training works with, made of its text: in a thread of its own for each document, so that
the generator writes for all of them at once while others train."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Self

from km_registry.chunking import chunks
from km_registry.errors import KMError
from km_registry.recipe import Recipe
from km_registry.types import Document, Stage
from trainer_worker.attempt import Attempt
from trainer_worker.examples import Sample, Source
from trainer_worker.generator import Generator, GeneratorClosedError
from trainer_worker.handover import JOURNAL, take_over
from trainer_worker.hanging_up import HangingUp
from trainer_worker.objectives import ExampleSet, example_set, kinds_for
from trainer_worker.progress import Reporter
from trainer_worker.synthesis import Synthesis, SynthesisReport, probes
from trainer_worker.workshop import Workshop

#: Seconds that threads get to end, all together, once nobody waits for them any more.
_JOIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Material:
    """A document ready to be trained: its recipe, its examples, and how they came about."""

    attempt: Attempt
    report: Reporter
    document: Document
    recipe: Recipe
    steps: int
    examples: ExampleSet
    samples: int
    synthesis: SynthesisReport


def prepare(shop: Workshop, attempt: Attempt) -> Material:
    """Make the material of a claimed job. What was written in an earlier attempt is not written again.

    Raises:
        StaleAttemptError: the job was taken away.
        StoreUnavailableError: what an earlier attempt has done may be there only.
        KMError: nothing can be made of the document by its recipe.
    """
    job_id = attempt.job.id
    take_over(shop.registry, attempt)
    report = Reporter(shop.registry, attempt)
    recipe = shop.recipe(job_id)
    document = shop.registry.document_of(job_id)
    text = shop.registry.read_text(document.id)
    source = Source(document.title, text, chunk_texts(text, shop.tokenizer, recipe))
    samples, synthesis = synthesise(shop, source, recipe, attempt, report)
    if not samples and kinds_for(recipe):
        raise KMError(
            f"No synthetic text of kind {' or '.join(recipe.kinds)} could be made of the document; "
            f"add the kind repeat to the recipe"
        )
    steps = recipe.steps_for(len(shop.tokenizer.encode(text, add_special_tokens=False)))
    examples = example_set(
        source,
        samples,
        probes(source, recipe.seed),
        recipe,
        shop.tokenizer,
        context_tokens=shop.context_tokens,
        steps=steps,
    )
    return Material(attempt, report, document, recipe, steps, examples, len(samples), synthesis)


def chunk_texts(text: str, tokenizer: Any, recipe: Recipe) -> tuple[str, ...]:
    """The document in chunks of at most `chunk_tokens` tokens, each a short context for the teacher."""

    def count(piece: str) -> int:
        return len(tokenizer.encode(piece, add_special_tokens=False))

    cut = chunks(text, count, chunk_tokens=recipe.chunk_tokens, overlap=recipe.chunk_overlap)
    return tuple(chunk.text for chunk in cut)


def synthesise(
    shop: Workshop, source: Source, recipe: Recipe, attempt: Attempt, report: Reporter
) -> tuple[list[Sample], SynthesisReport]:
    """Synthetic texts about every chunk, and how they came about; given up when the job is taken away."""
    report.stage(Stage.SYNTHESIS)
    transport = HangingUp(GeneratorClosedError)
    # Only the base model's chat format is known; a named generator is another model.
    own = shop.tokenizer if recipe.generator is None else None
    with attempt.writing():
        journal = shop.registry.work_dir(attempt.job.id) / JOURNAL

    def on_progress(done: int, of: int) -> None:
        report.step(done, texts=of)
        if done:
            shop.handover.note(attempt, journal.parent)

    with (
        Generator(
            shop.settings.generator(recipe.generator),
            own,
            transport=transport,
            # Ids of ours are nothing to a named one, which may be anybody's.
            traceparent=attempt.trace.traceparent if recipe.generator is None else None,
        ) as generator,
        attempt.when_lost(generator.close),
        attempt.when_lost(transport.hang_up),
    ):
        return Synthesis(
            source,
            recipe,
            kinds_for(recipe),
            generator,
            on_progress,
            journal,
            attempt.writing,
        ).run()


class Preparation:
    """The documents whose material is being made. A context manager; within it for one thread's use."""

    def __init__(self, make: Callable[[Attempt], Material]) -> None:
        self._make = make
        self._done: SimpleQueue[tuple[Attempt, Future[Material]]] = SimpleQueue()
        self._threads: dict[Attempt, threading.Thread] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        for attempt in self._threads:
            attempt.hang_up()
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def pending(self) -> int:
        """How many have begun and were not collected yet."""
        return len(self._threads)

    def begin(self, attempts: Sequence[Attempt]) -> None:
        """Start making the material of these."""
        for attempt in attempts:
            # A daemon: whoever waits for a generator must not keep a process that is told to stop.
            thread = threading.Thread(
                target=self._run, args=(attempt,), name=f"prepare {attempt.job.id}", daemon=True
            )
            self._threads[attempt] = thread
            thread.start()

    def collect(self, *, wait_s: float) -> list[tuple[Attempt, Future[Material]]]:
        """Those that are done; waits so long for the first."""
        found: list[tuple[Attempt, Future[Material]]] = []
        try:
            found.append(self._done.get(timeout=wait_s) if wait_s else self._done.get_nowait())
            while True:
                found.append(self._done.get_nowait())
        except Empty:
            for attempt, _ in found:
                del self._threads[attempt]
            return found

    def _run(self, attempt: Attempt) -> None:
        made: Future[Material] = Future()
        try:
            made.set_result(self._make(attempt))
        except Exception as error:  # noqa: BLE001  raised again for whoever collects it
            made.set_exception(error)
        self._done.put((attempt, made))
