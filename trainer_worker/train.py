"""The loop: every step is one forward and one backward pass for all the documents in training.

Each run has its own slot, so its gradient is its own; whoever ends, by its last step, its own decision or a
failure, leaves the group, and the others go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from km_registry.errors import KMError
from trainer_worker.distillation import Part, loss_sums
from trainer_worker.packing import packed_tokens
from trainer_worker.pairs import Pair, filled
from trainer_worker.runs import Run, RunState, TrainingError, TrainResult

__all__ = ["Ended", "Run", "TrainResult", "TrainingError", "train"]

_log = structlog.get_logger(__name__)

_Batches = dict[RunState, list[Pair]]
_Parts = list[tuple[RunState, list[Pair]]]


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has left the group: with a result, its slot holding the best weights; or with the error that
    ended it, its slot holding those of the last good step."""

    state: RunState
    result: TrainResult | None = None
    error: KMError | None = None

    @property
    def run(self) -> Run:
        """The run as it was handed in."""
        return self.state.run


def train(
    model: Any,
    runs: Iterable[Run],
    *,
    joining: Callable[[], Iterable[Run]] = tuple,
    forward_tokens: int | None = None,
    checkpoint_s: float = 60.0,
) -> Generator[Ended, None, None]:
    """Train a group of runs; yields each as it ends, and goes on with the others when asked for the next.

    `joining` is asked after every step for runs to take in, and the loop ends when no run is left and it has
    none. `forward_tokens` bounds the tokens of a forward pass, whatever recipes say (None: they alone do).
    A KMError that a run's own callbacks raise, a loss that is not finite or too little memory ends that run.
    What else is raised ends the loop; runs with a directory leave checkpoints first, so that they can go on.
    """
    limit = _Limit(forward_tokens)
    active: list[RunState] = []
    entering = list(runs)
    saved = time.monotonic()
    try:
        while entering or active:
            for run in entering:
                state = RunState(model, run, limit.of(run))
                try:
                    state.start()
                except KMError as refusal:
                    yield Ended(state, error=refusal)
                else:
                    active.append(state)
            done = [state for state in active if state.ended]
            errors = _save(done)
            active = [state for state in active if state not in done]
            for state in done:
                yield Ended(state, error=errors[state]) if state in errors else Ended(state, state.finish())
            errors = _step(model, active, limit)
            if time.monotonic() - saved >= checkpoint_s:
                # All at the same step, so that they also go on side by side.
                errors |= _save([state for state in active if state not in errors])
                saved = time.monotonic()
            active = [state for state in active if state not in errors]
            for state, error in errors.items():
                yield Ended(state, error=error)
            entering = list(joining())
    finally:
        _save(active)


def _save(states: Iterable[RunState]) -> dict[RunState, KMError]:
    """Leave checkpoints; the runs that must not write any more, with the reason."""
    errors: dict[RunState, KMError] = {}
    for state in states:
        try:
            state.save()
        except KMError as error:
            errors[state] = error
    return errors


class _Limit:
    """Most tokens in a forward pass: as asked for, and less once memory was short."""

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._halved: set[RunState] = set()

    def of(self, run: Run) -> int:
        """Most tokens of this run in a forward pass."""
        own = run.recipe.micro_batch_tokens or run.recipe.batch_tokens
        return own if self._tokens is None else min(own, self._tokens)

    def together(self, states: Iterable[RunState]) -> int | None:
        """Most tokens of these runs in one forward pass; None without a limit."""
        limits = [state.run.recipe.micro_batch_tokens for state in states]
        return min((limit for limit in [*limits, self._tokens] if limit is not None), default=None)

    def lower(self, parts: _Parts) -> bool:
        """Memory did not suffice for these: halve what is asked of it. False when that was done before for a
        run that was alone in it, which then cannot be helped."""
        states = [state for state, _ in parts]
        if len(states) == 1:
            if states[0] in self._halved:
                return False
            self._halved.add(states[0])
        self._tokens = max(1, sum(_tokens(pairs) for _, pairs in parts) // 2)
        _log.warning("memory is short; smaller parts from here on", forward_tokens=self._tokens)
        for state in states:
            state.forward_tokens = self.of(state.run)
        return True


def _step(model: Any, active: list[RunState], limit: _Limit) -> dict[RunState, KMError]:
    """One step of every run; those that end by it, with the reason."""
    errors: dict[RunState, KMError] = {}
    batches = {state: state.draw() for state in active}
    losses = _gradients(model, batches, limit, errors)
    if len(losses) > 1 and not all(map(math.isfinite, losses.values())):
        # Whoever's it is, it may have spread through what they share: let each compute alone.
        losses = {}
        for state, batch in batches.items():
            losses |= _gradients(model, {state: batch}, limit, errors)
    for state, loss in losses.items():
        if not math.isfinite(loss):
            errors[state] = TrainingError(
                f"the loss is not finite at step {state.step + 1}; lower learning_rate in the recipe"
            )
            continue
        try:
            state.update(loss)
            state.run.on_step(state.step, state.smoothed)
        except KMError as error:
            errors[state] = error
    return errors


def _gradients(
    model: Any, batches: _Batches, limit: _Limit, errors: dict[RunState, KMError]
) -> dict[RunState, float]:
    """Leave each run's clipped gradient in its slot; its loss, not finite if the gradient is not."""
    while batches := {state: batch for state, batch in batches.items() if state not in errors}:
        losses, failed = _accumulate(model, batches, limit, errors)
        if not failed:
            return {
                state: loss if math.isfinite(state.clip()) else math.nan for state, loss in losses.items()
            }
        # Out of the block that caught the error, which would keep its tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not limit.lower(failed):
            errors[failed[0][0]] = TrainingError(
                f"not enough memory on the device for a part of {_tokens(failed[0][1])} tokens at step "
                f"{failed[0][0].step + 1}; lower micro_batch_tokens or chunk_tokens in the recipe"
            )
    return {}


def _accumulate(
    model: Any, batches: _Batches, limit: _Limit, errors: dict[RunState, KMError]
) -> tuple[dict[RunState, float], _Parts]:
    """Sum the gradient of every run's mean loss over forward passes; the losses, or the parts that memory did
    not suffice for."""
    targets = {state: sum(len(pair.example.target) for pair in batch) for state, batch in batches.items()}
    losses = {state: torch.zeros((), device=model.device) for state in batches}
    for state in batches:
        state.prepare()
    model.train()
    for planned in _forwards(batches, limit):
        parts = [(state, pairs) for state, pairs in planned if _goes_on(state, errors)]
        if not parts:
            continue
        try:
            sums = loss_sums(model, [Part(state.run.slot, pairs, state.run.recipe) for state, pairs in parts])
            means = [loss / targets[state] for loss, (state, _) in zip(sums, parts, strict=True)]
            torch.stack(means).sum().backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            return {}, parts
        for (state, _), loss in zip(parts, means, strict=True):
            losses[state] += loss.detach()
    return {state: loss.item() for state, loss in losses.items() if state not in errors}, []


def _goes_on(state: RunState, errors: dict[RunState, KMError]) -> bool:
    if state in errors:
        return False
    try:
        state.run.check()
    except KMError as error:
        errors[state] = error
        return False
    return True


def _forwards(batches: _Batches, limit: _Limit) -> Iterator[_Parts]:
    """The runs' batches as the parts of forward passes that keep the limit."""
    most = limit.together(batches)
    if most is None:
        yield list(batches.items())
        return
    parts: _Parts = []
    tokens = 0
    for state, batch in batches.items():
        for pairs in filled(batch, most):
            count = _tokens(pairs)
            # A run comes once in a forward pass.
            if parts and (tokens + count > most or parts[-1][0] is state):
                yield parts
                parts, tokens = [], 0
            parts.append((state, pairs))
            tokens += count
    yield parts


def _tokens(pairs: list[Pair]) -> int:
    return packed_tokens(pair.example for pair in pairs)
