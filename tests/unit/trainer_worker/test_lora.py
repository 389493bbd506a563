"""The LoRA is PEFT's: same outputs, same gradients, same files; off, it is the base model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from trainer_worker.lora import (
    TARGET_MODULES,
    LoraLinear,
    add_lora,
    lora_layers,
    lora_off,
    lora_parameters,
    peft_state,
    restore,
    snapshot,
)

IDS = torch.tensor([[5, 99, 17, 200, 31, 8]])


class One(nn.Module):
    """A single layer under a name that is adapted."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.q_proj(x)
        return y


def with_peft(model: nn.Module, *, rank: int, alpha: float, tensors: dict[str, Tensor]) -> Any:
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(TARGET_MODULES), bias="none"
    )
    wrapped = get_peft_model(model, config)
    named = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            named[name.replace(".weight", ".default.weight")].copy_(tensor)
    return wrapped


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 6), (6, 10), (10, 6)])
def test_output_and_gradients_are_pefts(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    plain = One(inputs, outputs)
    ours = copy.deepcopy(plain)
    add_lora(ours, rank=3, alpha=6.0)
    layer = ours.q_proj
    assert isinstance(layer, LoraLinear)
    nn.init.normal_(layer.lora_B)
    theirs = with_peft(plain, rank=3, alpha=6.0, tensors=peft_state(ours, torch.float32))
    x = torch.randn(2, 5, inputs, requires_grad=True)
    x_theirs = x.detach().clone().requires_grad_()
    weights = torch.randn(2, 5, outputs)

    y, y_theirs = ours(x), theirs(x_theirs)
    (y * weights).sum().backward()
    (y_theirs * weights).sum().backward()

    their_layer = theirs.base_model.model.q_proj
    assert torch.allclose(y, y_theirs, atol=1e-5)
    assert not torch.allclose(y, plain.q_proj.base_layer(x), atol=0.1)
    for mine, other in (
        (x.grad, x_theirs.grad),
        (layer.lora_A.grad, their_layer.lora_A["default"].weight.grad),
        (layer.lora_B.grad, their_layer.lora_B["default"].weight.grad),
    ):
        assert mine is not None
        assert torch.allclose(mine, other, atol=1e-4)
        assert mine.abs().max() > 0.01
    assert layer.weight.grad is None


def test_the_product_has_numerically_right_gradients() -> None:
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(4, 4, bias=False), 2, 3.0, 0.0).double()
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, {"lora_A": a, "lora_B": b}, (x,))
        return y

    assert torch.autograd.gradcheck(product, (x, layer.lora_A, layer.lora_B))


def test_a_whole_model_is_pefts(base: Any, make_student: Callable[..., Any]) -> None:
    ours = make_student(noise=0.2)
    theirs = with_peft(base, rank=4, alpha=8.0, tensors=peft_state(ours, torch.float32)).eval()

    mine, other = ours(IDS).logits, theirs(IDS).logits
    mine.square().mean().backward()
    other.square().mean().backward()

    assert torch.allclose(mine, other, atol=1e-3, rtol=1e-4)
    gradients = {
        name.replace(".default", ""): parameter.grad for name, parameter in theirs.named_parameters()
    }
    for name, layer in lora_layers(ours).items():
        for part in ("lora_A", "lora_B"):
            expected = gradients[f"base_model.model.{name}.{part}.weight"]
            got = getattr(layer, part).grad
            assert torch.allclose(got, expected, atol=1e-3 * float(expected.abs().max())), (name, part)


def test_every_linear_layer_of_the_blocks_is_adapted_and_nothing_else_trained(
    make_student: Callable[..., Any],
) -> None:
    model = make_student(rank=3)

    assert len(lora_layers(model)) == 2 * len(TARGET_MODULES)
    assert {name.rpartition(".")[2] for name in lora_layers(model)} == set(TARGET_MODULES)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in lora_parameters(model)}
    assert len(trained) == 4 * len(TARGET_MODULES)
    assert all(layer.lora_A.shape[0] == 3 and layer.scale == 8 / 3 for layer in lora_layers(model).values())


def test_a_fresh_lora_changes_nothing(base: Any, make_student: Callable[..., Any]) -> None:
    model = make_student()

    assert torch.equal(model(IDS).logits, base(IDS).logits)
    assert all(layer.lora_A.abs().max() > 0 for layer in lora_layers(model).values())


def test_off_is_exactly_the_base_and_on_again_afterwards(base: Any, make_student: Callable[..., Any]) -> None:
    model = make_student(noise=0.2)
    adapted = model(IDS).logits

    with lora_off(model):
        off = model(IDS).logits
    with pytest.raises(KeyError), lora_off(model):
        raise KeyError

    assert torch.equal(off, base(IDS).logits)
    assert not torch.allclose(adapted, off, atol=0.1)
    assert torch.equal(model(IDS).logits, adapted)


def test_dropout_acts_in_training_only_and_on_the_update_only(make_student: Callable[..., Any]) -> None:
    model = make_student(dropout=0.5, noise=0.2)
    still = model(IDS).logits

    model.train()
    first, second = model(IDS).logits, model(IDS).logits
    with lora_off(model):
        off = model(IDS).logits
    model.eval()

    assert not torch.allclose(first, second)
    assert torch.equal(model(IDS).logits, still)
    with lora_off(model):
        assert torch.equal(model(IDS).logits, off)


def test_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(4, 4, bias=False), 2, 2.0, 0.25)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(1, 4)
    layer.eval()
    expected = layer(x)
    layer.train()

    mean = layer(x.expand(20_000, 4)).mean(0)

    assert torch.allclose(mean, expected[0], atol=0.05)


def test_restoring_a_snapshot_undoes_training(make_student: Callable[..., Any]) -> None:
    model = make_student(noise=0.1)
    before, taken = model(IDS).logits, snapshot(model)

    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(1)
    changed = model(IDS).logits
    restore(model, taken)

    assert not torch.allclose(changed, before)
    assert torch.equal(model(IDS).logits, before)
    with pytest.raises(ValueError):
        restore(model, taken[:-1])


def test_a_model_without_target_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="q_proj"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), rank=2, alpha=2)


def test_a_layer_with_a_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="bias"):
        LoraLinear(nn.Linear(2, 2), 1, 1.0, 0.0)
