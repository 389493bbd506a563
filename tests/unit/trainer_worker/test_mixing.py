"""KM and KE in one LoRA: hand-computed, equal to two adapters side by side, gradients where they belong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer_worker.examples import Example
from trainer_worker.lora import Slot, attach_lora, lora_layers, open_slot
from trainer_worker.mixing import START, Scalars, mixed
from trainer_worker.packing import part_states


class _Square(nn.Module):
    """One square layer, where a transposed factor would pass unseen by its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(2, 2, bias=False)


def _slot(model: nn.Module, *, rank: int, alpha: float, **matrices: list[list[float]]) -> Slot:
    slot = open_slot(model, rank=rank, alpha=alpha)
    with torch.no_grad():
        for name, matrix in slot.matrices().items():
            matrix.copy_(torch.tensor(matrices[name[-1]]))
    return slot


def _filled(model: nn.Module, *, seed: int, rank: int = 3, alpha: float = 6.0) -> Slot:
    slot = open_slot(model, rank=rank, alpha=alpha, seed=seed)
    with torch.no_grad():
        slot.flat.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return slot


@pytest.fixture
def square() -> nn.Module:
    model = _Square()
    attach_lora(model)
    return model


@pytest.fixture
def student(make_student: Callable[..., Any]) -> Any:
    return make_student()


def test_hand_computed_square_layer(square: nn.Module) -> None:
    km = _slot(square, rank=1, alpha=3.0, A=[[1.0, 2.0]], B=[[3.0], [5.0]])
    ke = _slot(square, rank=1, alpha=2.0, A=[[7.0, 11.0]], B=[[13.0], [17.0]])
    scalars = Scalars.of(ke)
    with torch.no_grad():
        scalars.values_L2.copy_(torch.tensor([[0.5, 0.25]]))

    both = mixed(km, ke, scalars)

    matrices = both.matrices()
    # w_M·s_M = 0.5·3, w_E·s_E = 0.25·2.
    assert matrices["q_proj.lora_A"].tolist() == [[1.0, 2.0], [7.0, 11.0]]
    assert matrices["q_proj.lora_B"].tolist() == [[4.5, 6.5], [7.5, 8.5]]
    assert both.scale == 1.0


def test_ke_alone_is_scaled_by_its_own_scalar_only(square: nn.Module) -> None:
    ke = _slot(square, rank=1, alpha=2.0, A=[[7.0, 11.0]], B=[[13.0], [17.0]])
    scalars = Scalars.of(ke)

    matrices = mixed(None, ke, scalars).matrices()

    assert matrices["q_proj.lora_A"].tolist() == [[7.0, 11.0]]
    assert matrices["q_proj.lora_B"].tolist() == [[13.0 * 2 * START], [17.0 * 2 * START]]


def test_composite_in_the_model_equals_the_two_updates_added_to_the_weights(student: Any) -> None:
    km, ke = _filled(student, seed=1), _filled(student, seed=2, rank=5, alpha=5.0)
    scalars = Scalars.of(ke)
    with torch.no_grad():
        scalars.values_L2.uniform_(0.2, 0.9, generator=torch.Generator().manual_seed(3))
    example = Example("answer", 0, (), (9, 14, 21, 30), (40, 41, 42))

    (composed_LNH,) = part_states(student, [(mixed(km, ke, scalars), [example])])

    with torch.no_grad():
        for name, layer in lora_layers(student).items():
            for slot, weight in zip((km, ke), scalars.by_layer()[name], strict=True):
                own = slot.matrices()
                layer.weight += weight * slot.scale * own[f"{name}.lora_B"] @ own[f"{name}.lora_A"]
    (added_LNH,) = part_states(student, [(None, [example])])
    torch.testing.assert_close(composed_LNH, added_LNH, rtol=1e-4, atol=1e-5)


def test_gradients_reach_ke_and_scalars_and_not_the_km(student: Any) -> None:
    km, ke = _filled(student, seed=1), _filled(student, seed=2)
    scalars = Scalars.of(ke)
    example = Example("answer", 0, (), (9, 14, 21, 30), (40, 41, 42))

    (states_LNH,) = part_states(student, [(mixed(km, ke, scalars), [example])])
    states_LNH[-1].sum().backward()  # type: ignore[no-untyped-call]

    assert km.flat.grad is None
    assert isinstance(ke.flat.grad, Tensor)
    assert all(bool(piece.any()) for piece in ke.flat.grad.split(ke.flat.numel() // 10))
    assert scalars.values_L2.grad is not None
    assert bool(scalars.values_L2.grad.all())


def test_gradient_of_a_scalar_is_that_of_a_finite_difference(student: Any) -> None:
    km, ke = _filled(student, seed=1), _filled(student, seed=2)
    scalars = Scalars.of(ke)
    example = Example("answer", 0, (), (9, 14, 21, 30), (40, 41, 42))

    def total() -> Tensor:
        (states_LNH,) = part_states(student, [(mixed(km, ke, scalars), [example])])
        return states_LNH[-1].sum()

    total().backward()  # type: ignore[no-untyped-call]
    assert scalars.values_L2.grad is not None
    for column in (0, 1):
        apart = []
        for sign in (1, -1):
            with torch.no_grad():
                scalars.values_L2[3, column] += sign * 1e-2
                apart.append(total().item())
                scalars.values_L2[3, column] -= sign * 1e-2
        slope = (apart[0] - apart[1]) / 2e-2
        assert scalars.values_L2.grad[3, column].item() == pytest.approx(slope, rel=2e-2, abs=1e-3)


def test_a_km_of_other_layers_is_refused(student: Any, square: nn.Module) -> None:
    km = _slot(square, rank=1, alpha=1.0, A=[[1.0, 2.0]], B=[[3.0], [5.0]])
    ke = _filled(student, seed=2)

    with pytest.raises(ValueError, match="adapts other layers"):
        mixed(km, ke, Scalars.of(ke))


def test_state_names_both_scalars_of_every_layer(square: nn.Module) -> None:
    ke = _slot(square, rank=1, alpha=2.0, A=[[7.0, 11.0]], B=[[13.0], [17.0]])
    scalars = Scalars.of(ke)
    with torch.no_grad():
        scalars.values_L2.copy_(torch.tensor([[0.75, 0.25]]))

    assert {name: value.tolist() for name, value in scalars.state().items()} == {
        "q_proj.w_M": [0.75],
        "q_proj.w_E": [0.25],
    }
