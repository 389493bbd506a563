"""One document's run: what it learns, where it stands, and how it goes on from where it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from km_registry.errors import KMError
from km_registry.recipe import Recipe
from trainer_worker.checkpoints import Checkpoint, Checkpoints, into_optimizer, of_optimizer
from trainer_worker.distillation import kl_sums, mean, mean_loss, recovered_share
from trainer_worker.lora import Slot
from trainer_worker.pairs import BatchStream, Pair
from trainer_worker.targets import digest


class TrainingError(KMError):
    """The training cannot go on."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A look at the held-out pairs. `recovered` is None where none of them has a teacher."""

    step: int
    heldout_loss: float
    recovered: float | None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run did: steps taken, and the step whose weights its slot holds now."""

    steps: int
    best_step: int
    train_loss: float
    heldout_loss: float


@dataclass(eq=False)
class Run:
    """One document's training.

    `on_step` gets every step and its smoothed loss, `on_evaluation` every look at the held-out pairs; `check`
    is called before every forward pass the run takes part in. A KMError that any of them raises ends this run
    alone. With a `directory` the run leaves checkpoints there, tells `on_checkpoint` of each, and goes on
    from one it finds, if it was written for the same pairs, recipe, steps, slot and `context` (whatever else
    decides the result: the base model's fingerprint, the KM a warm start came from). Files are made within
    `writing`, which may raise too.
    """

    slot: Slot
    pairs: Sequence[Pair]
    heldout: Sequence[Pair]
    recipe: Recipe
    steps: int
    on_step: Callable[[int, float], None] = lambda _step, _loss: None
    on_evaluation: Callable[[Evaluation], None] = lambda _evaluation: None
    on_checkpoint: Callable[[], None] = lambda: None
    check: Callable[[], None] = lambda: None
    directory: Path | None = None
    writing: Callable[[], AbstractContextManager[None]] = nullcontext
    context: str = ""


@dataclass(eq=False)
class RunState:
    """A run in the loop. Its slot holds the weights of the last step; `finish` puts the best ones there."""

    model: Any
    run: Run
    #: Most tokens in a forward pass.
    forward_tokens: int
    step: int = 0
    smoothed: float = 0.0
    best: list[Tensor] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.inf
    kl_base: float | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    #: Whether all of the above belongs to one step: it does not in the middle of an update.
    whole: bool = False

    def __post_init__(self) -> None:
        self._parameters = self.run.slot.parameters()
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=self.run.recipe.learning_rate, weight_decay=0.0, fused=True
        )
        self._place = (0, 0)
        self._saved_step = 0
        self._checkpoints: Checkpoints | None = None

    def start(self) -> None:
        """Take the checkpoint over if there is one, else measure the base model.

        Raises:
            KMError: the run's `check` ends it.
        """
        run = self.run
        if run.directory is not None:
            self._checkpoints = Checkpoints(run.directory, self._digest(), run.writing)
        found = self._checkpoints.load() if self._checkpoints else None
        if found:
            self._take_over(found)
        else:
            self.best = run.slot.snapshot()
            self.kl_base = self._measure_base()
        self._stream = BatchStream(
            run.pairs,
            run.recipe.batch_tokens,
            run.recipe.seed,
            weights={str(kind): weight for kind, weight in run.recipe.mixture.items()},
            place=self._place,
        )
        self.whole = True

    @property
    def looked_at(self) -> Sequence[Pair]:
        """The held-out pairs; what is trained on where there are none."""
        return self.run.heldout or self.run.pairs

    @property
    def ended(self) -> bool:
        """Whether every step is done, or `recovered` has been flat for as long as the recipe bears."""
        patience = self.run.recipe.patience
        return self.step >= self.run.steps or (patience is not None and self._flat_for() >= patience)

    def draw(self) -> list[Pair]:
        """The next step's batch."""
        return next(self._stream)

    def prepare(self) -> None:
        """No gradient yet, and the next step's own dropout."""
        self._optimizer.zero_grad(set_to_none=True)
        self.run.slot.seed_dropout(self.step + 1)

    def clip(self) -> float:
        """Bound the gradient's norm; the norm before."""
        return torch.nn.utils.clip_grad_norm_(self._parameters, self.run.recipe.clip).item()

    def update(self, loss: float) -> None:
        """Take the step whose gradient is there, and look at the held-out pairs when it is time to.

        Raises:
            KMError: the run's `check` ends it.
        """
        run = self.run
        self.whole = False
        for group in self._optimizer.param_groups:
            group["lr"] = run.recipe.learning_rate * lr_factor(self.step, run.steps, run.recipe.warmup)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.smoothed = loss if self.step == 1 else 0.9 * self.smoothed + 0.1 * loss
        self._place = self._stream.place
        if self.step == run.steps or self.step % max(1, run.steps // run.recipe.evaluations) == 0:
            self._evaluate()
        self.whole = True

    def finish(self) -> TrainResult:
        """Put the best weights into the slot; what the run did."""
        self.run.slot.restore(self.best)
        return TrainResult(self.step, self.best_step, self.smoothed, self.best_loss)

    def save(self) -> None:
        """Write a checkpoint of the last step, if there is a place for it and it is not there yet.

        Raises:
            KMError: the run's `writing` ends it.
        """
        if self._checkpoints is None or not self.whole or self.step == self._saved_step:
            return
        tensors = {f"slot.{n}": tensor for n, tensor in enumerate(self.run.slot.snapshot())}
        tensors |= {f"best.{n}": tensor for n, tensor in enumerate(self.best)}
        tensors |= of_optimizer(self._optimizer, self._parameters)
        fields = {
            "step": self.step,
            "place": self._place,
            "smoothed": self.smoothed,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "kl_base": self.kl_base,
            "evaluations": [[e.step, e.heldout_loss, e.recovered] for e in self.evaluations],
        }
        self._checkpoints.save(Checkpoint(tensors, fields))
        self._saved_step = self.step
        self.run.on_checkpoint()

    def _take_over(self, found: Checkpoint) -> None:
        fields = found.fields
        self.run.slot.restore(_numbered(found.tensors, "slot."))
        device = self._parameters[0].device
        self.best = [tensor.to(device) for tensor in _numbered(found.tensors, "best.")]
        into_optimizer(self._optimizer, self._parameters, found.tensors)
        self.step = self._saved_step = fields["step"]
        self._place = (fields["place"][0], fields["place"][1])
        self.smoothed, self.kl_base = fields["smoothed"], fields["kl_base"]
        self.best_step, self.best_loss = fields["best_step"], fields["best_loss"]
        self.evaluations = [Evaluation(*values) for values in fields["evaluations"]]

    def _digest(self) -> str:
        run = self.run
        shapes = [tuple(parameter.shape) for parameter in self._parameters]
        decisive = (run.context, run.recipe.model_dump_json(), run.steps, shapes, len(run.pairs))
        return digest([pair.example for pair in [*run.pairs, *run.heldout]], repr(decisive))

    def _measure_base(self) -> float | None:
        sums = kl_sums(
            self.model, None, self.looked_at, batch_tokens=self.forward_tokens, check=self.run.check
        )
        return mean(sums.values()) if sums else None

    def _evaluate(self) -> None:
        run = self.run
        loss, sums = mean_loss(
            self.model,
            run.slot,
            self.looked_at,
            run.recipe,
            batch_tokens=self.forward_tokens,
            check=run.check,
        )
        share = recovered_share(self.kl_base, mean(sums.values())) if self.kl_base is not None else None
        self.evaluations.append(Evaluation(self.step, loss, share))
        if loss < self.best_loss:
            self.best, self.best_step, self.best_loss = run.slot.snapshot(), self.step, loss
        run.on_evaluation(self.evaluations[-1])

    def _flat_for(self) -> int:
        """Evaluations since the one with the best `recovered` (without a teacher: the least loss)."""
        worth = [-e.heldout_loss if e.recovered is None else e.recovered for e in self.evaluations]
        return len(worth) - 1 - worth.index(max(worth)) if worth else 0


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then cosine to zero."""
    warm = max(1, round(steps * warmup))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def _numbered(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
    count = sum(name.startswith(prefix) for name in tensors)
    return [tensors[f"{prefix}{n}"] for n in range(count)]
