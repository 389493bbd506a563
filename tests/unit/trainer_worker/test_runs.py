"""One run: best weights, early stop, learning rate; and a killed run ends as one that was not."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from km_registry.errors import StaleAttemptError
from km_registry.recipe import Recipe
from trainer_worker import runs as runs_module
from trainer_worker.evaluate import recovered
from trainer_worker.examples import Example
from trainer_worker.lora import open_slot
from trainer_worker.pairs import Pair
from trainer_worker.runs import Evaluation, Run, lr_factor
from trainer_worker.targets import Targets
from trainer_worker.train import Ended, train

RECIPE = Recipe(seed=3, rank=4, learning_rate=1e-2, batch_tokens=48, evaluations=3, warmup=0.1)


def with_fields(**fields: Any) -> Recipe:
    return Recipe.model_validate(RECIPE.model_dump() | fields)


@pytest.fixture
def model(make_student: Callable[..., Any]) -> Any:
    return make_student()


@pytest.fixture
def pairs(model: Any, make_pairs: Callable[..., list[Pair]]) -> list[Pair]:
    return make_pairs(model, 9)


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(model: Any, pairs: list[Pair]) -> MakeRun:
    def make(*, seed: int = 1, dropout: float = 0.0, steps: int = 9, **options: Any) -> Run:
        slot = open_slot(model, rank=4, alpha=8.0, dropout=dropout, seed=seed)
        return Run(
            **{"slot": slot, "pairs": pairs[:6], "heldout": pairs[6:], "recipe": RECIPE, "steps": steps}
            | options
        )

    return make


def scripted(monkeypatch: pytest.MonkeyPatch, *looks: tuple[float, float]) -> list[Tensor]:
    """Let evaluations find these losses and KLs, one after the other; the weights each of them saw."""
    script = iter(looks)
    seen: list[Tensor] = []

    def look(_model: Any, slot: Any, *_rest: Any, **_options: Any) -> tuple[float, dict[str, Any]]:
        seen.append(slot.flat.detach().clone())
        loss, kl = next(script)
        return loss, {"qa": (kl, 1)}

    monkeypatch.setattr(runs_module, "mean_loss", look)
    monkeypatch.setattr(runs_module, "kl_sums", lambda *_, **__: {"qa": (2.0, 1)})
    return seen


def test_the_weights_with_the_least_heldout_loss_are_kept(
    model: Any, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, (0.9, 1.0), (0.3, 1.0), (0.5, 0.2))
    run = make_run()

    (ended,) = train(model, [run])

    assert ended.result is not None
    assert (ended.result.best_step, ended.result.heldout_loss, ended.result.steps) == (6, 0.3, 9)
    assert torch.equal(run.slot.flat, seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_what_the_evaluations_find_is_told(model: Any, make_run: MakeRun) -> None:
    run = make_run()
    (ended,) = train(model, [run])

    last = ended.state.evaluations[-1]
    assert [evaluation.step for evaluation in ended.state.evaluations] == [3, 6, 9]
    assert ended.result is not None
    assert ended.result.best_step == 9
    measured = recovered(model, run.slot, run.heldout, batch_tokens=48)
    assert last.recovered == pytest.approx(measured.recovered, abs=2e-4)
    assert last.heldout_loss == ended.result.heldout_loss


def test_the_last_step_is_always_looked_at(
    model: Any, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, *[(1 / n, 1.0) for n in range(1, 9)])

    run = make_run(steps=5, recipe=with_fields(evaluations=2))
    told: list[Evaluation] = []
    run.on_evaluation = told.append

    (ended,) = train(model, [run])

    assert [evaluation.step for evaluation in ended.state.evaluations] == [2, 4, 5]
    assert told == ended.state.evaluations


def test_a_run_stops_when_recovered_is_flat(
    model: Any, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The best `recovered` comes second, though the loss still falls after it.
    kls = [1.0, 0.5, 0.6, 0.5, 0.4]
    seen = scripted(monkeypatch, *[(1 - n / 10, kl) for n, kl in enumerate(kls)])
    run = make_run(steps=20, recipe=with_fields(evaluations=10, patience=2))
    told: list[int] = []
    run.on_step = lambda step, _loss: told.append(step)

    (ended,) = train(model, [run])

    assert [evaluation.recovered for evaluation in ended.state.evaluations] == [0.5, 0.75, 0.7, 0.75]
    assert ended.result is not None
    assert (ended.result.steps, ended.result.best_step, told[-1]) == (8, 8, 8)
    assert torch.equal(run.slot.flat, seen[3])


def test_without_patience_it_never_stops_early(
    model: Any, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, *[(1.0, 1.0 + n) for n in range(10)])

    (ended,) = train(model, [make_run(steps=20, recipe=with_fields(evaluations=10))])

    assert ended.result is not None
    assert (ended.result.steps, ended.result.best_step) == (20, 2)


def test_without_any_teacher_the_loss_decides_when_it_is_flat(model: Any, make_run: MakeRun) -> None:
    plain = [Pair(Example("lm", 0, (), (4,), (5, 6, 7)), None)]
    recipe = with_fields(evaluations=20, patience=1, objective="lm", learning_rate=1.0)

    (ended,) = train(model, [make_run(pairs=plain, heldout=[], steps=20, recipe=recipe)])

    losses = [evaluation.heldout_loss for evaluation in ended.state.evaluations]
    assert all(evaluation.recovered is None for evaluation in ended.state.evaluations)
    assert losses[-1] >= min(losses[:-1])
    assert ended.result is not None
    assert ended.result.steps < 20


def test_learning_rate_by_hand() -> None:
    # 20 steps, 4 of warm-up: a quarter more each, then cosine over the other 16.
    assert [lr_factor(step, 20, 0.2) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(4, 20, 0.2) == 1.0
    assert lr_factor(12, 20, 0.2) == pytest.approx(0.5)
    assert lr_factor(20, 20, 0.2) == pytest.approx(0.0)
    assert lr_factor(8, 20, 0.2) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    # Never zero at the first step, even when all or nothing is warm-up.
    assert lr_factor(0, 1, 0.0) == lr_factor(0, 1, 1.0) == 1.0


def test_each_step_is_adams_with_its_own_rate_and_a_bounded_gradient(
    model: Any, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps by hand, from the gradients that were there."""
    run = make_run(steps=4, recipe=with_fields(warmup=0.5, clip=0.1))
    weights = [run.slot.flat.detach().clone()]
    grads: list[Tensor] = []
    update = runs_module.RunState.update

    def noted(state: Any, loss: float) -> None:
        grads.append(run.slot.flat.grad.clone())  # type: ignore[union-attr]
        update(state, loss)
        weights.append(run.slot.flat.detach().clone())

    monkeypatch.setattr(runs_module.RunState, "update", noted)
    list(train(model, [run]))

    assert all(grad.norm().item() <= 0.1 + 1e-6 for grad in grads)
    assert any(grad.norm().item() > 0.099 for grad in grads)
    first, second = torch.zeros_like(weights[0]), torch.zeros_like(weights[0])
    for step, rate in ((1, 0.5), (2, 1.0)):
        first = 0.9 * first + 0.1 * grads[step - 1]
        second = 0.999 * second + 0.001 * grads[step - 1] ** 2
        move = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        assert torch.allclose(weights[step], weights[step - 1] - 1e-2 * rate * move, atol=1e-6)


# --- resume ------------------------------------------------------------------------------------------------


def told(ended: Ended) -> tuple[Any, ...]:
    """All that a run leaves behind."""
    assert ended.result is not None
    evaluations = [asdict(evaluation) for evaluation in ended.state.evaluations]
    return ended.run.slot.flat.tolist(), asdict(ended.result), evaluations, ended.state.kl_base


#: All that could go wrong in going on: dropout, more than one epoch, weights, a best step in the middle.
HARD = with_fields(batch_tokens=20, evaluations=4, kinds={"qa": 1.5}, learning_rate=5e-2)


@pytest.mark.parametrize("killed_at", [1, 4, 5, 11, 12])
def test_a_killed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    model: Any, make_run: MakeRun, tmp_path: Path, killed_at: int
) -> None:
    options: dict[str, Any] = {"dropout": 0.2, "steps": 12, "recipe": HARD}
    (whole,) = train(model, [make_run(**options)])
    expected = told(whole)

    run = make_run(**options, directory=tmp_path / "first")

    def copy(step: int, _loss: float) -> None:
        # What a kill at this moment leaves: the checkpoint of the step before.
        if step == killed_at + 1:
            shutil.copytree(tmp_path / "first", tmp_path / "second")

    run.on_step = copy
    list(train(model, [run], checkpoint_s=0))
    if killed_at == 12:
        shutil.copytree(tmp_path / "first", tmp_path / "second")
    steps: list[int] = []
    resumed = make_run(
        **options, directory=tmp_path / "second", on_step=lambda step, _loss: steps.append(step)
    )
    torch.rand(5)
    (ended,) = train(model, [resumed])

    assert steps == list(range(killed_at + 1, 13))
    assert told(ended) == expected


class StoppedError(BaseException):
    """As a worker that is being stopped raises it, from a signal: at any moment."""


@pytest.mark.parametrize("where", ["on_step", "check", "update"])
def test_a_loop_that_is_stopped_leaves_checkpoints_of_the_last_whole_step(
    model: Any, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    options: dict[str, Any] = {"dropout": 0.2, "steps": 8, "recipe": HARD}
    (whole,) = train(model, [make_run(**options)])
    expected = told(whole)
    run = make_run(**options, directory=tmp_path)
    steps: list[int] = []

    def stop(*_arguments: Any, **_options: Any) -> None:
        if len(steps) == 4:
            raise StoppedError

    def on_step(step: int, _loss: float) -> None:
        steps.append(step)
        if where == "on_step":
            stop()

    run.on_step = on_step
    if where == "check":
        run.check = stop
    if where == "update":
        optimizer_step = torch.optim.AdamW.step
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: [optimizer_step(self), stop()])
    with pytest.raises(StoppedError):
        list(train(model, [run]))
    monkeypatch.undo()

    went_on: list[int] = []
    (ended,) = train(
        model,
        [make_run(**options, directory=tmp_path, on_step=lambda step, _loss: went_on.append(step))],
    )

    # In the middle of an update there was nothing whole to write, and no checkpoint was due before.
    assert went_on[0] == (1 if where == "update" else 5)
    assert told(ended) == expected


def test_a_group_that_is_stopped_goes_on_as_a_group(model: Any, make_run: MakeRun, tmp_path: Path) -> None:
    def runs(place: Path | None) -> list[Run]:
        return [
            make_run(
                seed=seed,
                dropout=0.1,
                steps=6 + seed,
                recipe=HARD,
                directory=place / str(seed) if place else None,
            )
            for seed in (1, 2)
        ]

    expected = [told(ended) for ended in train(model, runs(None))]
    stopped = runs(tmp_path)

    def stop(step: int, _loss: float) -> None:
        if step == 3:
            raise StoppedError

    stopped[1].on_step = stop
    with pytest.raises(StoppedError):
        list(train(model, stopped))

    assert [told(ended) for ended in train(model, runs(tmp_path))] == expected


def test_a_finished_run_is_not_trained_again(model: Any, make_run: MakeRun, tmp_path: Path) -> None:
    (first,) = train(model, [make_run(directory=tmp_path)])
    again = make_run(directory=tmp_path, on_step=lambda *_: pytest.fail("trained"))

    (second,) = train(model, [again])

    assert told(second) == told(first)


def test_a_run_that_stopped_early_stays_stopped(
    model: Any, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, (0.5, 1.0), (0.4, 1.5))
    options: dict[str, Any] = {"recipe": with_fields(evaluations=9, patience=1), "directory": tmp_path}
    (first,) = train(model, [make_run(**options)])

    (second,) = train(model, [make_run(**options, on_step=lambda *_: pytest.fail("trained"))])

    assert first.result is not None
    assert first.result.steps == 2
    assert told(second) == told(first)


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": with_fields(seed=4)},
        {"steps": 10},
        {"context": "another base model"},
        {"pairs": "fewer"},
        {"heldout": []},
    ],
)
def test_another_runs_checkpoint_is_not_gone_on_from(
    model: Any, make_run: MakeRun, pairs: list[Pair], tmp_path: Path, change: dict[str, Any]
) -> None:
    list(train(model, [make_run(directory=tmp_path)]))
    if "pairs" in change:
        change = {"pairs": pairs[:5]}
    steps: list[int] = []

    list(
        train(model, [make_run(directory=tmp_path, on_step=lambda step, _loss: steps.append(step), **change)])
    )

    assert steps[0] == 1


def test_a_run_that_fails_keeps_its_last_good_checkpoint(
    model: Any, make_run: MakeRun, pairs: list[Pair], tmp_path: Path
) -> None:
    targets = pairs[0].targets
    sick = Targets(targets.mean_NH * math.nan, targets.negentropy_N, targets.layers_LNH)
    bad = Pair(pairs[0].example, lambda: sick)
    run = make_run(pairs=[*pairs[1:6], bad], recipe=with_fields(batch_tokens=16), directory=tmp_path)
    good: list[Tensor] = []
    run.on_step = lambda _step, _loss: good.append(run.slot.flat.detach().clone())

    (ended,) = train(model, [run], checkpoint_s=0)

    assert len(good) > 1
    assert f"step {len(good) + 1};" in str(ended.error)
    (checkpoint,) = tmp_path.iterdir()
    assert torch.equal(load_file(checkpoint)["slot.0"], good[-1])


def test_a_run_that_may_not_write_any_more_ends_and_leaves_nothing(
    model: Any, make_run: MakeRun, tmp_path: Path
) -> None:
    @contextmanager
    def refused() -> Iterator[None]:
        raise StaleAttemptError
        yield

    other = make_run(seed=2)
    run = make_run(directory=tmp_path / "purged", writing=refused)

    first, last = train(model, [run, other], checkpoint_s=0)

    assert first.run is run
    assert isinstance(first.error, StaleAttemptError)
    assert first.state.step == 1
    assert last.result is not None
    assert not (tmp_path / "purged").exists()
