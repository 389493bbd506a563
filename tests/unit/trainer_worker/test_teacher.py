"""Teacher targets with a shared prefix and in batches are those of plain forward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer_worker.examples import Example
from trainer_worker.teacher import compute_targets, shared_prefix


def ignore(_done: int) -> None:
    pass


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_targets_are_those_of_plain_forward_passes(
    base: Any,
    make_student: Callable[..., Any],
    make_examples: Callable[..., list[Example]],
    batch_tokens: int,
) -> None:
    model = make_student(noise=0.3)  # the teacher is the base, whatever the LoRA has learned
    examples = make_examples(9, chunks=3)

    results = compute_targets(model, examples, batch_tokens=batch_tokens, on_progress=ignore)

    assert len(results) == len(examples)
    for example, targets in zip(examples, results, strict=True):
        with torch.no_grad():
            output = base.model(
                input_ids=torch.tensor([example.teacher_input]), use_cache=False, output_hidden_states=True
            )
        start = len(example.teacher_prompt) - 1
        assert targets.final_NH.shape == (len(example.target), 32)
        assert targets.final_NH.dtype == torch.float32
        assert torch.allclose(targets.final_NH, output.last_hidden_state[0, start:], atol=1e-4)
        assert targets.layers_LNH.shape == (2, len(example.target), 32)
        assert targets.layers_LNH.dtype == torch.bfloat16
        # The embedding entry is left out; the last layer is the normalised one.
        for layer, states in enumerate(output.hidden_states[1:]):
            assert torch.allclose(targets.layers_LNH[layer].float(), states[0, start:], rtol=1e-2, atol=1e-2)


def test_chunks_in_any_order_come_back_in_order(
    make_student: Callable[..., Any], make_examples: Callable[..., list[Example]]
) -> None:
    model, examples = make_student(), make_examples(6)
    forwards = compute_targets(model, examples, batch_tokens=64, on_progress=ignore)
    backwards = compute_targets(model, examples[::-1], batch_tokens=64, on_progress=ignore)[::-1]

    for one, other in zip(forwards, backwards, strict=True):
        assert torch.allclose(one.final_NH, other.final_NH, atol=1e-4)


def test_prompts_that_share_nothing_still_work(base: Any, make_student: Callable[..., Any]) -> None:
    examples = [
        Example("qa", 0, (10, 11, 12), (12,), (50, 51)),
        Example("qa", 0, (20, 21), (21,), (60,)),
    ]

    results = compute_targets(make_student(), examples, batch_tokens=64, on_progress=ignore)

    for example, targets in zip(examples, results, strict=True):
        with torch.no_grad():
            states = base.model(input_ids=torch.tensor([example.teacher_input])).last_hidden_state
        assert torch.allclose(targets.final_NH, states[0, len(example.teacher_prompt) - 1 :], atol=1e-4)


def test_the_teacher_leaves_the_lora_on_and_no_gradient(
    make_student: Callable[..., Any], make_examples: Callable[..., list[Example]]
) -> None:
    model = make_student(noise=0.3)
    before = model(torch.tensor([[5, 6]])).logits

    (targets,) = compute_targets(model, make_examples(1), batch_tokens=64, on_progress=ignore)

    assert torch.equal(model(torch.tensor([[5, 6]])).logits, before)
    assert not targets.final_NH.requires_grad
    # A view would keep the whole batch's states in memory.
    assert targets.final_NH.untyped_storage().nbytes() == targets.final_NH.nbytes
    assert targets.layers_LNH.untyped_storage().nbytes() == targets.layers_LNH.nbytes


def test_progress_counts_examples(
    make_student: Callable[..., Any], make_examples: Callable[..., list[Example]]
) -> None:
    told: list[int] = []
    compute_targets(make_student(), make_examples(7), batch_tokens=30, on_progress=told.append)

    assert told == sorted(set(told))
    assert told[-1] == 7
    assert len(told) > 2


@pytest.mark.parametrize(
    ("sequences", "length"),
    [
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2, 3), (9, 2, 3)], 0),
        ([(1, 2, 3), (1, 2, 3)], 2),
        ([(1, 2), (1, 2, 3, 4)], 1),
        ([(1, 2, 3)], 2),
        ([(1,)], 0),
    ],
)
def test_shared_prefix_leaves_every_sequence_a_token(sequences: list[tuple[int, ...]], length: int) -> None:
    assert shared_prefix(sequences) == length
