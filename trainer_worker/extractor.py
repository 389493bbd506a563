"""Training a Knowledge Extractor: −log p(answer | question) of many documents, each with its own frozen KM.

Shapes: N target positions, L layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from km_registry.ke_recipe import KEDocument, KERecipe
from trainer_worker.answers import Answers, Asked, Batch, Form
from trainer_worker.checkpoints import Checkpoint, Checkpoints, into_optimizer, of_optimizer
from trainer_worker.lora import Slot, open_slot
from trainer_worker.losses import nll_from_hidden
from trainer_worker.mixing import Scalars, mixed
from trainer_worker.packing import part_states
from trainer_worker.runs import TrainingError, lr_factor

#: The KM of a document, as a slot; None where it has none or none is wanted.
KMOf = Callable[[KEDocument], Slot | None]


@dataclass(frozen=True, slots=True)
class Look:
    """Held-out documents after `step` steps: nats per answer token, the mean over questions, by form."""

    step: int
    nll: dict[str, float]

    @property
    def worth(self) -> float:
        """What is to become small: the mean over the forms."""
        return sum(self.nll.values()) / len(self.nll)


@dataclass(eq=False)
class KETraining:
    """One KE in training. `trainable` and `heldout` are different documents.

    With a `directory` it leaves checkpoints there, and goes on from one that was written for the same
    recipe, documents and `context`.
    """

    model: Any
    recipe: KERecipe
    trainable: Answers
    heldout: Answers
    km_of: KMOf
    directory: Path | None = None
    context: str = ""
    checkpoint_s: float = 60.0
    on_step: Callable[[int, float], None] = lambda _step, _loss: None
    on_look: Callable[[Look], None] = lambda _look: None
    step: int = 0
    smoothed: float = 0.0
    looks: list[Look] = field(default_factory=list)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.ke = open_slot(
            self.model, rank=recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout, seed=recipe.seed
        )
        self.scalars = Scalars.of(self.ke)
        self._parameters = [self.ke.flat, self.scalars.values_L2]
        groups = [
            {"params": self.ke.parameters(), "peak": recipe.learning_rate},
            {"params": [self.scalars.values_L2], "peak": recipe.scalars_learning_rate},
        ]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self._best = self._weights()
        #: Whether weights, optimizer and numbers belong to one step: they do not in the middle of an update.
        self._whole = True
        self._checkpoints = Checkpoints(self.directory, self.context) if self.directory else None

    def run(self) -> Look:
        """Train to the end and leave the best weights in `ke` and `scalars`; the look at them.

        Raises:
            TrainingError: the loss is not finite; the last good checkpoint is kept.
        """
        self._take_over()
        saved = time.monotonic()
        try:
            while True:
                if self._look_due:
                    self._look()
                if self.ended:
                    break
                self._take_step()
                if time.monotonic() - saved >= self.checkpoint_s:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()
        self._put(self._best)
        return self.best

    @property
    def ended(self) -> bool:
        """Whether every step is done, or the looks have not become better for as long as is borne."""
        patience = self.recipe.patience
        flat = len(self.looks) - 1 - self.looks.index(self.best) if self.looks else 0
        return self.step >= self.recipe.steps or (patience is not None and flat >= patience)

    @property
    def best(self) -> Look:
        """The look with the least loss."""
        return min(self.looks, key=lambda look: look.worth)

    def save(self) -> None:
        """Write a checkpoint, if there is a place for it."""
        if self._checkpoints is None or not self._whole:
            return
        tensors = {f"now.{n}": tensor for n, tensor in enumerate(self._weights())}
        tensors |= {f"best.{n}": tensor for n, tensor in enumerate(self._best)}
        tensors |= of_optimizer(self._optimizer, self._parameters)
        fields = {
            "step": self.step,
            "smoothed": self.smoothed,
            "looks": [[look.step, look.nll] for look in self.looks],
        }
        self._checkpoints.save(Checkpoint(tensors, fields))

    @property
    def _look_due(self) -> bool:
        every = max(1, self.recipe.steps // self.recipe.evaluations)
        looked = self.looks[-1].step if self.looks else None
        return looked != self.step and (self.step % every == 0 or self.step == self.recipe.steps)

    def _take_over(self) -> None:
        found = self._checkpoints.load() if self._checkpoints else None
        if found is None:
            return
        device = self.model.device
        tensors = {name: tensor.to(device) for name, tensor in found.tensors.items()}
        self._put([tensors["now.0"], tensors["now.1"]])
        self._best = [tensors["best.0"], tensors["best.1"]]
        into_optimizer(self._optimizer, self._parameters, tensors)
        self.step, self.smoothed = found.fields["step"], found.fields["smoothed"]
        self.looks = [Look(step, nll) for step, nll in found.fields["looks"]]

    def _take_step(self) -> None:
        self.model.train()
        self._optimizer.zero_grad(set_to_none=True)
        self.ke.seed_dropout(self.step + 1)
        losses = self._losses(self.trainable.batches(self.step))
        loss = torch.stack(losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip)
        if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
            raise TrainingError(
                f"the loss is not finite at step {self.step + 1}; lower learning_rate or "
                "scalars_learning_rate"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * lr_factor(self.step, self.recipe.steps, self.recipe.warmup)
        self._whole = False
        self._optimizer.step()
        self.step += 1
        self.smoothed = loss.item() if self.step == 1 else 0.9 * self.smoothed + 0.1 * loss.item()
        self._whole = True
        self.on_step(self.step, self.smoothed)

    def _losses(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Each question's loss; all documents go through the model together, each under its own composite."""
        km_of = self.km_of if self.recipe.trained == "km+ke" else lambda _document: None
        parts = [(mixed(km_of(batch.document), self.ke, self.scalars), batch.examples) for batch in batches]
        head = self.model.lm_head.weight
        losses = []
        for states_LNH, batch in zip(part_states(self.model, parts), batches, strict=True):
            target_N = torch.tensor([token for one in batch.examples for token in one.target])
            nll_N = nll_from_hidden(states_LNH[-1], target_N.to(head.device), head)
            losses += question_losses(nll_N, batch.asked)
        return losses

    @torch.no_grad()
    def _look(self) -> None:
        self.model.eval()
        nll = {}
        for form in (Form.CLOSED, Form.PASSAGES):
            losses = [float(one) for batch in self.heldout.heldout(form) for one in self._losses([batch])]
            if losses:
                nll[str(form)] = round(sum(losses) / len(losses), 4)
        look = Look(self.step, nll)
        if not self.looks or look.worth < self.best.worth:
            self._best = self._weights()
        self.looks.append(look)
        self.on_look(look)

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]

    def _put(self, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, weights, strict=True):
                parameter.copy_(weight)


def question_losses(nll_N: Tensor, asked: Sequence[Asked]) -> list[Tensor]:
    """Each question's loss in nats: its answer's mean over tokens; with choices the cross-entropy over their
    length-normalised log-likelihoods, as the authors train it.

    Raises:
        ValueError: there is not one value for each target token.
    """
    lengths = [[len(example.target) for example in one.examples] for one in asked]
    if sum(map(sum, lengths)) != len(nll_N):
        raise ValueError(f"{sum(map(sum, lengths))} target tokens, and {len(nll_N)} values")
    losses, start = [], 0
    for one, sizes in zip(asked, lengths, strict=True):
        means = []
        for size in sizes:
            means.append(nll_N[start : start + size].mean())
            start += size
        if one.gold is None:
            losses.append(means[0])
        else:
            losses.append(-torch.log_softmax(-torch.stack(means), 0)[one.gold])
    return losses
