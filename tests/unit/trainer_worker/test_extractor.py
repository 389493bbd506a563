"""A KE in training, on a tiny model: the loss by hand, learning beside frozen KMs, resume, early stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from km_registry.ke_recipe import KEDocument, KEQuestion, KERecipe
from trainer_worker.answers import Answers, Asked
from trainer_worker.examples import Example
from trainer_worker.extractor import KETraining, question_losses
from trainer_worker.lora import Slot, open_slot
from trainer_worker.runs import TrainingError

RECIPE: dict[str, Any] = {
    "rank": 2,
    "alpha": 4.0,
    "steps": 8,
    "learning_rate": 2e-2,
    "scalars_learning_rate": 2e-2,
    "documents_per_step": 2,
    "batch_tokens": 200,
    "evaluations": 4,
    "heldout_questions": 2,
}


def _examples(*lengths: int) -> tuple[Example, ...]:
    return tuple(Example("answer", 0, (), (5, 6), tuple(range(10, 10 + length))) for length in lengths)


def test_an_answers_loss_is_the_mean_over_its_tokens() -> None:
    asked = [Asked(_examples(3)), Asked(_examples(1))]

    losses = question_losses(torch.tensor([1.0, 2.0, 6.0, 5.0]), asked)

    assert [float(loss) for loss in losses] == [3.0, 5.0]


def test_choices_are_cross_entropy_over_length_normalised_likelihoods() -> None:
    asked = [Asked(_examples(2, 1, 1), gold=1)]

    (loss,) = question_losses(torch.tensor([1.0, 3.0, 1.0, 4.0]), asked)

    # Means over tokens: 2, 1, 4.
    expected = -math.log(math.exp(-1) / (math.exp(-2) + math.exp(-1) + math.exp(-4)))
    assert float(loss) == pytest.approx(expected)


def test_values_that_do_not_match_the_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="4 target tokens, and 3 values"):
        question_losses(torch.zeros(3), [Asked(_examples(3)), Asked(_examples(1))])


class _Trainings:
    """Makes trainings of the same few documents, each with a KM of its own."""

    def __init__(self, make_student: Callable[..., Any], tokenizer: Any) -> None:
        self._make_student = make_student
        self._tokenizer = tokenizer

    def make(self, directory: Path | None = None, **changed: Any) -> KETraining:
        hooks = {name: changed.pop(name) for name in ("on_step", "on_look") if name in changed}
        recipe = KERecipe(**RECIPE | changed)
        model = self._make_student()
        kms = {f"d{number}": _km(model, seed=number) for number in range(4)}
        fit, heldout = [_document(number) for number in range(3)], [_document(3)]
        return KETraining(
            model,
            recipe,
            Answers(fit, self._tokenizer, recipe),
            Answers(heldout, self._tokenizer, recipe),
            lambda document: kms[document.id],
            directory=directory,
            context="same",
            **hooks,
        )


def _km(model: Any, *, seed: int) -> Slot:
    slot = open_slot(model, rank=4, alpha=8.0)
    with torch.no_grad():
        slot.flat.normal_(0, 0.05, generator=torch.Generator().manual_seed(seed))
    slot.flat.requires_grad_(False)
    return slot


def _document(number: int) -> KEDocument:
    questions = tuple(
        KEQuestion(question=f"Who keeps {n}?", answers=("Seven keepers",), passages=("Seven keepers live.",))
        for n in range(3)
    )
    return KEDocument(id=f"d{number}", title=f"T{number}", questions=questions)


@pytest.fixture
def trainings(make_student: Callable[..., Any], tokenizer: Any) -> _Trainings:
    return _Trainings(make_student, tokenizer)


def test_it_learns_to_answer_and_moves_its_scalars(trainings: _Trainings) -> None:
    training = trainings.make(steps=24)

    best = training.run()

    first = training.looks[0]
    assert best.nll["closed"] < 0.7 * first.nll["closed"]
    assert best.nll["passages"] < 0.7 * first.nll["passages"]
    assert bool((training.scalars.values_L2 != 0.5).any(1).all())


def test_without_kms_only_the_ke_answers(trainings: _Trainings) -> None:
    training = trainings.make(trained="ke", steps=2)

    training.run()

    # w_M takes no part, so nothing moves it.
    assert training.scalars.values_L2[:, 0].tolist() == [0.5] * len(training.scalars.layers)
    assert bool((training.scalars.values_L2[:, 1] != 0.5).all())


def test_the_first_look_is_at_the_untrained_ke(trainings: _Trainings) -> None:
    looks: list[int] = []

    trainings.make(on_look=lambda look: looks.append(look.step), patience=None).run()

    assert looks == [0, 2, 4, 6, 8]


def test_a_stopped_training_goes_on_to_the_same_ke(trainings: _Trainings, tmp_path: Path) -> None:
    whole = trainings.make()
    whole.run()

    def stop(step: int, _loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    stopped = trainings.make(tmp_path, on_step=stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    steps: list[int] = []
    resumed = trainings.make(tmp_path, on_step=lambda step, _loss: steps.append(step))
    resumed.run()

    assert steps == [6, 7, 8]
    assert torch.equal(resumed.ke.flat, whole.ke.flat)
    assert torch.equal(resumed.scalars.values_L2, whole.scalars.values_L2)
    assert resumed.looks == whole.looks


def test_it_stops_when_held_out_documents_gain_nothing(trainings: _Trainings) -> None:
    # A rate that can only do harm.
    training = trainings.make(
        steps=40, evaluations=40, learning_rate=1.0, scalars_learning_rate=1.0, patience=2
    )

    best = training.run()

    assert training.step < 40
    assert best.worth == min(look.worth for look in training.looks)
    assert training.looks.index(best) == len(training.looks) - 3


def test_the_best_weights_are_left_in_place(trainings: _Trainings) -> None:
    training = trainings.make(
        steps=40, evaluations=40, learning_rate=1.0, scalars_learning_rate=1.0, patience=2
    )
    best = training.run()

    training.looks.clear()
    training._look()

    assert training.looks[0].nll == best.nll


def test_a_loss_that_is_not_finite_ends_it_with_the_step(trainings: _Trainings, tmp_path: Path) -> None:
    training = trainings.make(tmp_path)
    training.model.lm_head.weight.data[0, 0] = math.nan

    with pytest.raises(TrainingError, match="not finite at step 1"):
        training.run()
