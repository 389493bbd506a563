"""The documents that train together: who joins, what each of them brings, how each ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from km_registry.errors import NotFoundError
from km_registry.recipe import Recipe, RecipeError
from km_registry.types import KM, Job, Stage
from trainer_worker.attempt import Attempt
from trainer_worker.attempts import Attempts
from trainer_worker.checkpoints import CHECKPOINT
from trainer_worker.lora import Slot, open_slot
from trainer_worker.memory import Memory
from trainer_worker.pairs import pairs_of
from trainer_worker.preparation import Material, Preparation
from trainer_worker.publication import publish
from trainer_worker.targets import Budget, TargetStore
from trainer_worker.teacher import compute_targets
from trainer_worker.train import Ended, Run, TrainingError
from trainer_worker.warm_start import warm_start
from trainer_worker.workshop import Workshop

#: Seconds between two looks at the queue.
_LOOK_S = 1.0
#: Of a training that failed by its own numbers a retry may want to see the last good step.
_KEPT = (CHECKPOINT,)


@dataclass(frozen=True, slots=True)
class Trainee:
    """A document in training: its material, its slot, its teacher targets, and the KM it began from."""

    material: Material
    slot: Slot
    store: TargetStore
    warm: KM | None

    def close(self) -> None:
        """Give its memory back."""
        self.store.close()
        self.slot.close()


class Group:
    """Takes documents in as they get ready, between two steps of the others, and sees each out as it ends."""

    def __init__(
        self,
        shop: Workshop,
        attempts: Attempts,
        preparation: Preparation,
        memory: Memory,
        *,
        idle_workers: Callable[[], int],
    ) -> None:
        self._shop = shop
        self._attempts = attempts
        self._preparation = preparation
        self._memory = memory
        self._idle_workers = idle_workers
        self._recipes: dict[str, Recipe] = {}
        self._trainees: dict[Run, Trainee] = {}
        self._looked = 0.0
        #: The resident base model, which is loaded while the first texts are written.
        self.model: Any = None
        preparation.begin(attempts.held())

    def joining(self) -> list[Run]:
        """The documents that are ready to train; waits for one while none trains and some will be."""
        while True:
            self._take_in()
            waits = not self._trainees and self._preparation.pending
            ready = self._preparation.collect(wait_s=_LOOK_S if waits else 0.0)
            runs = [run for attempt, made in ready for run in self._begin(attempt, made)]
            if runs or self._trainees or not self._preparation.pending:
                return runs

    def finish(self, ended: Ended) -> None:
        """Publish the run's KM, or fail its job with the reason."""
        trainee = self._trainees.pop(ended.run)
        attempt = trainee.material.attempt
        kept = _KEPT if isinstance(ended.error, TrainingError) else ()
        try:
            with self._attempts.ending(attempt, keep=kept):
                if ended.error is not None:
                    ended.state.save()
                    raise ended.error
                publish(self._shop, self.model, trainee.material, ended, warm=trainee.warm)
                self._attempts.finished(attempt)
        finally:
            trainee.close()

    def close(self) -> None:
        """Give back what the documents still in training have taken."""
        while self._trainees:
            self._trainees.popitem()[1].close()

    # --- who comes in --------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        """Claim jobs that wait, as many as the settings and the memory allow."""
        limit = self._shop.settings.train_concurrency
        now = time.monotonic()
        if len(self._attempts) >= limit or (self._trainees and now - self._looked < _LOOK_S):
            return
        self._looked = now
        more = self._attempts.claim_more(limit, self._fits, leave=self._idle_workers())
        self._preparation.begin(more)

    def _fits(self, job: Job) -> bool:
        beside = [self._recipe(attempt.job.id) for attempt in self._attempts.held()]
        return self._memory.fits(self._recipe(job.id), beside=[one for one in beside if one is not None])

    def _recipe(self, job_id: str) -> Recipe | None:
        """None for one that will be refused as soon as it is prepared."""
        try:
            return self._recipes.get(job_id) or self._recipes.setdefault(job_id, self._shop.recipe(job_id))
        except (RecipeError, NotFoundError):
            return None

    # --- what it brings ------------------------------------------------------------------------------------

    def _begin(self, attempt: Attempt, made: Future[Material]) -> list[Run]:
        """The run of a document whose material is made; none when its attempt has ended by that."""
        runs: list[Run] = []
        with self._attempts.ending(attempt):
            runs.append(self._enter(made.result()))
        return runs

    def _enter(self, material: Material) -> Run:
        with ExitStack() as undo:
            store = undo.enter_context(self._targets(material))
            recipe, attempt = material.recipe, material.attempt
            slot = open_slot(
                self.model, rank=recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout, seed=recipe.seed
            )
            undo.callback(slot.close)
            warm = warm_start(self._shop, material, slot)
            pairs = pairs_of([*material.examples.fit, *material.examples.heldout], store)
            fit = len(material.examples.fit)
            directory = self._work_dir(attempt)
            run = Run(
                slot=slot,
                pairs=pairs[:fit],
                heldout=pairs[fit:],
                recipe=recipe,
                steps=material.steps,
                on_step=lambda step, loss: material.report.step(step, loss=round(loss, 4)),
                on_evaluation=lambda found: material.report.evaluation(found.step, found.recovered),
                on_checkpoint=lambda: self._shop.handover.note(attempt, directory),
                check=attempt.check,
                writing=attempt.writing,
                directory=directory,
                context=f"{self._shop.context} {warm.digest if warm else ''}",
            )
            material.report.stage(Stage.TRAINING, material.steps)
            undo.pop_all()
        self._trainees[run] = Trainee(material, slot, store, warm)
        return run

    def _targets(self, material: Material) -> TargetStore:
        """What the teacher says, computed once; the file outlives this process."""
        attempt, report = material.attempt, material.report
        examples = [*material.examples.fit, *material.examples.heldout]
        report.stage(Stage.TEACHER, len(examples))
        return compute_targets(
            self.model,
            examples,
            batch_tokens=self._shop.teacher_batch_tokens,
            on_progress=report.step,
            layers=bool(material.recipe.hidden_weight),
            budget=Budget(*self._target_bytes(), self._work_dir(attempt) / "targets.bin"),
            context=self._shop.context,
            writing=attempt.writing,
        )

    def _work_dir(self, attempt: Attempt) -> Path:
        with attempt.writing():
            return self._shop.registry.work_dir(attempt.job.id)

    def _target_bytes(self) -> tuple[int, int]:
        """Memory and disk for one more document's targets: an even share of what the others have left."""
        settings = self._shop.settings
        stores = [trainee.store for trainee in self._trainees.values()]
        without = max(1, len(self._attempts) - len(stores))
        memory = settings.teacher_cache_gb * 2**30 - sum(store.memory_bytes for store in stores)
        disk = settings.teacher_disk_gb * 2**30 - sum(store.disk_bytes for store in stores)
        return max(0, int(memory / without)), max(0, int(disk / without))
