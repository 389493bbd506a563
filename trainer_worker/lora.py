"""LoRA on the linear layers of a frozen model, and the way to and from PEFT's file layout.

One autograd function per layer: the update is added in place to the base product, and the backward pass
takes the input's gradient and both factors' gradients without intermediate copies, which PEFT's module
graph makes. The result is the same as PEFT's (tested), and the files are PEFT's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: Every linear layer of a Llama block.
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        xa_NR = x_NI @ a_RI.t()
        y_NO = x_NI @ weight_OI.t()
        y_NO.addmm_(xa_NR, b_OR.t(), alpha=scale)
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, xa_NR)
        ctx.scale, ctx.shape = scale, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        x_NI, weight_OI, a_RI, b_OR, xa_NR = ctx.saved_tensors
        dy_NO = grads[0].reshape(-1, grads[0].shape[-1])
        dyb_NR = (dy_NO @ b_OR).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy_NO @ weight_OI).addmm_(dyb_NR, a_RI).view(ctx.shape)
        return dx, None, dyb_NR.t() @ x_NI, (dy_NO.t() @ xa_NR).mul_(ctx.scale), None


class LoraLinear(nn.Module):
    """y = x·Wᵀ + (alpha/rank)·x·Aᵀ·Bᵀ with W frozen; A starts as in PEFT (Kaiming), B at zero.

    With `enabled` False it is the frozen layer, exactly.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        if getattr(linear, "bias", None) is not None:
            raise ValueError("layers with a bias are not supported: the engine serves LoRA without bias")
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = alpha / rank
        self.dropout = dropout
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Product with the frozen weight, plus the update when enabled."""
        if not self.enabled:
            return nn.functional.linear(x, self.weight)
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        if self.training and self.dropout > 0:
            update = nn.functional.linear(nn.functional.dropout(x, self.dropout), a) @ b.t()
            return nn.functional.linear(x, self.weight) + self.scale * update
        y: Tensor = _LoraProduct.apply(x, self.weight, a, b, self.scale)  # type: ignore[no-untyped-call]
        return y


def add_lora(model: nn.Module, *, rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Freeze the model and replace every target linear layer by a LoraLinear.

    Raises:
        ValueError: the model has none of the target modules.
    """
    model.requires_grad_(False)
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in TARGET_MODULES and isinstance(child, nn.Linear)
    ]
    if not found:
        raise ValueError(f"the base model has no linear layers named {', '.join(TARGET_MODULES)}")
    for parent, name, child in found:
        setattr(parent, name, LoraLinear(child, rank, alpha, dropout))


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by their path in the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What is trained: A and B of every adapted layer, in a fixed order."""
    return [p for layer in lora_layers(model).values() for p in (layer.lora_A, layer.lora_B)]


@contextmanager
def lora_off(model: nn.Module) -> Iterator[None]:
    """The bare base model within the block: that is the teacher."""
    layers = lora_layers(model).values()
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def peft_state(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names."""
    state: dict[str, Tensor] = {}
    for name, layer in lora_layers(model).items():
        for part in ("lora_A", "lora_B"):
            tensor = getattr(layer, part).detach().to(dtype).contiguous()
            state[f"base_model.model.{name}.{part}.weight"] = tensor
    return state


def snapshot(model: nn.Module) -> list[Tensor]:
    """A copy of what is trained, for `restore`."""
    return [p.detach().clone() for p in lora_parameters(model)]


def restore(model: nn.Module, tensors: list[Tensor]) -> None:
    """Put a snapshot back."""
    with torch.no_grad():
        for parameter, tensor in zip(lora_parameters(model), tensors, strict=True):
            parameter.copy_(tensor)
