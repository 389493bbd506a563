"""Examples with their teacher targets, in batches, run through the student."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer_worker.examples import Example
from trainer_worker.lora import lora_off
from trainer_worker.losses import kl_from_hidden


@dataclass(frozen=True, slots=True)
class Targets:
    """Teacher states at one example's N target positions.

    final_NH: what the language-model head reads, in the model's dtype (logits are one product away).
    layers_LNH: output of every block (the last one normalised), bfloat16: they are compared by an L1
    ratio, for which rounding to 8 bits is noise far below the loss.
    """

    final_NH: Tensor
    layers_LNH: Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """An example with its teacher targets."""

    example: Example
    targets: Targets


class BatchStream:
    """Endless batches of at most `batch_tokens` padded tokens; every epoch sees each pair once.

    Pairs of like length stand together so that little is padding; the order of batches is shuffled.
    """

    def __init__(self, pairs: Sequence[Pair], batch_tokens: int, seed: int) -> None:
        if not pairs:
            raise ValueError("there is nothing to train on")
        self._pairs = list(pairs)
        self._batch_tokens = batch_tokens
        self._random = random.Random(seed)  # noqa: S311  reproducible order, not a secret
        self._queue: list[list[Pair]] = []

    def __next__(self) -> list[Pair]:
        if not self._queue:
            self._queue = self._epoch()
        return self._queue.pop()

    def _epoch(self) -> list[list[Pair]]:
        jitter = {id(pair): self._random.random() for pair in self._pairs}
        ordered = sorted(
            self._pairs, key=lambda pair: len(pair.example.student_input) * (1 + 0.2 * jitter[id(pair)])
        )
        batches: list[list[Pair]] = []
        width = 0
        for pair in ordered:
            length = len(pair.example.student_input)
            if batches and (len(batches[-1]) + 1) * max(width, length) <= self._batch_tokens:
                batches[-1].append(pair)
                width = max(width, length)
            else:
                batches.append([pair])
                width = length
        self._random.shuffle(batches)
        return batches


def fixed_batches(pairs: Sequence[Pair], batch_tokens: int) -> list[list[Pair]]:
    """Batches for evaluation, always the same for the same pairs."""
    batches: list[list[Pair]] = []
    for pair in sorted(pairs, key=lambda pair: len(pair.example.student_input)):
        width = len(pair.example.student_input)
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(pair)
        else:
            batches.append([pair])
    return batches


def student_states(model: Any, examples: Sequence[Example]) -> list[Tensor]:
    """Run the examples as one right-padded batch; states_LNH of each at its target positions."""
    width = max(len(example.student_input) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long, device=model.device)
    for row, example in enumerate(examples):
        ids[row, : len(example.student_input)] = torch.tensor(example.student_input, device=model.device)
    hidden = model.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[1:]
    layers = torch.stack(hidden)
    return [
        layers[:, row, example.student_positions.start : example.student_positions.stop]
        for row, example in enumerate(examples)
    ]


def mean_kl(model: Any, pairs: Sequence[Pair], *, with_km: bool, batch_tokens: int) -> float:
    """Mean KL(teacher‖student) over target tokens, in nats, with the LoRA on or off."""
    if not with_km:
        with lora_off(model):
            return mean_kl(model, pairs, with_km=True, batch_tokens=batch_tokens)
    total = tokens = 0.0
    model.eval()
    with torch.no_grad():
        for batch in fixed_batches(pairs, batch_tokens):
            states = torch.cat([s[-1] for s in student_states(model, [pair.example for pair in batch])])
            final_NH = torch.cat([pair.targets.final_NH for pair in batch])
            kl_N = kl_from_hidden(final_NH, states, model.lm_head.weight)
            total += kl_N.sum().item()
            tokens += len(kl_N)
    return total / tokens
