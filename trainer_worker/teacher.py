"""Teacher targets: what the base model computes at target positions with the chunk in context.

They depend on (chunk, instruction, target) only, so each is computed once. Examples of one chunk share the
chunk as prefix: its keys and values are computed once and the examples run over them as a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainer_worker.examples import Example
from trainer_worker.lora import lora_off
from trainer_worker.pairs import Targets


def shared_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest prefix that all sequences share, at least one token short of each."""
    limit = min(len(sequence) for sequence in sequences) - 1
    first = sequences[0]
    for position in range(limit):
        if any(sequence[position] != first[position] for sequence in sequences):
            return position
    return limit


def compute_targets(
    model: Any, examples: Sequence[Example], *, batch_tokens: int, on_progress: Callable[[int], None]
) -> list[Targets]:
    """Teacher targets of every example, in order. `on_progress` gets the number done so far."""
    results: list[Targets | None] = [None] * len(examples)
    done = 0
    by_chunk: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        by_chunk.setdefault(example.chunk, []).append(index)
    model.eval()
    with torch.no_grad(), lora_off(model):
        for indices in by_chunk.values():
            group = [examples[index] for index in indices]
            prefix = shared_prefix(
                [example.teacher_input[: len(example.teacher_prompt)] for example in group]
            )
            cache = _prefix_cache(model, group[0].teacher_input[:prefix])
            for batch in _batches(group, prefix, batch_tokens):
                for position, targets in _run_batch(model, group, batch, prefix, cache):
                    results[indices[position]] = targets
                done += len(batch)
                on_progress(done)
    return [targets for targets in results if targets is not None]


def _batches(group: Sequence[Example], prefix: int, batch_tokens: int) -> list[list[int]]:
    order = sorted(range(len(group)), key=lambda index: len(group[index].teacher_input))
    batches: list[list[int]] = []
    for index in order:
        width = len(group[index].teacher_input) - prefix
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _prefix_cache(model: Any, prefix: tuple[int, ...]) -> Any:
    """Keys and values of the shared prefix, for a batch of one."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    if prefix:
        ids = torch.tensor([prefix], device=model.device)
        model.model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def _run_batch(
    model: Any, group: Sequence[Example], batch: list[int], prefix: int, prefix_cache: Any
) -> list[tuple[int, Targets]]:
    device = model.device
    cache = copy.deepcopy(prefix_cache)
    if prefix:
        cache.batch_repeat_interleave(len(batch))
    width = max(len(group[index].teacher_input) for index in batch) - prefix
    ids = torch.zeros(len(batch), width, dtype=torch.long, device=device)
    for row, index in enumerate(batch):
        suffix = group[index].teacher_input[prefix:]
        ids[row, : len(suffix)] = torch.tensor(suffix, device=device)
    # Padding stands at the right, where causal attention lets no real position see it.
    output = model.model(input_ids=ids, past_key_values=cache, use_cache=True, output_hidden_states=True)
    layers = torch.stack(output.hidden_states[1:])
    results = []
    for row, index in enumerate(batch):
        positions = torch.tensor(group[index].teacher_positions, device=device) - prefix
        states_LNH = layers[:, row, positions]
        results.append((index, Targets(states_LNH[-1].clone(), states_LNH.to(torch.bfloat16).clone())))
    return results
