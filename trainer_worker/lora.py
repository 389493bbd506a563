"""LoRA on the linear layers of a frozen model, several adapters side by side, and PEFT's file layout.

An adapter lives in a *slot*: one flat parameter that holds A and B of every adapted layer. Which slot acts on
which rows of a forward pass is said by `routed`; rows of no slot pass through the frozen layer, exactly. So
the LoRAs of several documents train in one batch over one resident model, and none sees another.

One autograd function per layer: the updates are added in place to the base product, and the backward pass
takes the input's gradient and the factors' gradients without intermediate copies, which PEFT's module graph
makes. The result is the same as PEFT's (tested), and the files are PEFT's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

#: Every linear layer of a Llama block.
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Update:
    """A slot's factors of one layer and the rows they act on (None: every row)."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    dropout: float
    generator: torch.Generator
    rows: slice | None


class LoraProduct(torch.autograd.Function):
    """x·Wᵀ, plus scale·dropout(x)·Aᵀ·Bᵀ on each update's rows. W is frozen: it gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, updates: Sequence[Update], *factors: Tensor
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        y_NO = x_NI @ weight_OI.t()
        saved: list[Tensor] = []
        for update, a_RI, b_OR in zip(updates, factors[::2], factors[1::2], strict=True):
            rows = update.rows or slice(None)
            part_NI, mask_NI = _dropped(x_NI[rows], update)
            xa_NR = part_NI @ a_RI.t()
            y_NO[rows].addmm_(xa_NR, b_OR.t(), alpha=update.scale)
            saved += [part_NI, mask_NI, xa_NR]
        ctx.save_for_backward(weight_OI, *factors, *saved)
        ctx.updates, ctx.shape = updates, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight_OI, *tensors = ctx.saved_tensors
        factors, saved = tensors[: 2 * len(ctx.updates)], tensors[2 * len(ctx.updates) :]
        dy_NO = grads[0].reshape(-1, grads[0].shape[-1])
        dx_NI = dy_NO @ weight_OI if ctx.needs_input_grad[0] else None
        results: list[Tensor | None] = []
        for index, update in enumerate(ctx.updates):
            a_RI, b_OR = factors[2 * index : 2 * index + 2]
            part_NI, mask_NI, xa_NR = saved[3 * index : 3 * index + 3]
            rows = update.rows or slice(None)
            dyb_NR = (dy_NO[rows] @ b_OR).mul_(update.scale)
            if dx_NI is not None and update.dropout:
                dx_NI[rows].addcmul_(dyb_NR @ a_RI, mask_NI)
            elif dx_NI is not None:
                dx_NI[rows].addmm_(dyb_NR, a_RI)
            results += [dyb_NR.t() @ part_NI, (dy_NO[rows].t() @ xa_NR).mul_(update.scale)]
        return (None if dx_NI is None else dx_NI.view(ctx.shape), None, None, *results)


def _dropped(x_NI: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """Input after dropout, and what it was multiplied with (empty: nothing)."""
    if not update.dropout:
        return x_NI, x_NI.new_empty(0)
    keep = 1 - update.dropout
    mask_NI = torch.empty_like(x_NI).bernoulli_(keep, generator=update.generator).div_(keep)
    return x_NI * mask_NI, mask_NI


class LoraLinear(nn.Module):
    """A frozen linear layer that adds what the routed slots say."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if getattr(linear, "bias", None) is not None:
            raise ValueError("layers with a bias are not supported: the engine serves LoRA without bias")
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        #: What acts in this forward pass; written by `routed`.
        self.updates: Sequence[Update] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Product with the frozen weight, plus the updates of the rows they act on."""
        if not self.updates:
            return nn.functional.linear(x, self.weight)
        factors = [factor for update in self.updates for factor in (update.a_RI, update.b_OR)]
        y: Tensor = LoraProduct.apply(x, self.weight, self.updates, *factors)  # type: ignore[no-untyped-call]
        return y


@dataclass(slots=True)
class Slot:
    """One adapter. `flat` holds every A and B in float32, in the order of `shapes`; it is a parameter where
    the slot is what is trained."""

    flat: Tensor
    shapes: Mapping[str, torch.Size]
    scale: float
    dropout: float
    seed: int
    generator: torch.Generator = field(repr=False)

    def parameters(self) -> list[Tensor]:
        """What is trained: one flat tensor, so that an optimizer's step is one operation."""
        return [self.flat]

    def seed_dropout(self, step: int) -> None:
        """Make the dropout of the following forward passes depend on the slot's seed and `step` only."""
        self.generator.manual_seed(self.seed * 1_000_003 + step)

    def matrices(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Views of A and B by `<layer>.lora_A` and `<layer>.lora_B`; their gradients arrive in `flat`."""
        flat = self.flat if dtype is None else self.flat.to(dtype)
        pieces = flat.split_with_sizes([shape.numel() for shape in self.shapes.values()])
        named = zip(self.shapes.items(), pieces, strict=True)
        return {name: piece.view(shape) for (name, shape), piece in named}

    def snapshot(self) -> list[Tensor]:
        """A copy of what is trained, for `restore`."""
        return [self.flat.detach().clone()]

    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Put a snapshot back."""
        (flat,) = tensors
        if flat.shape != self.flat.shape:
            raise ValueError(f"the snapshot holds {flat.numel()} numbers, the slot {self.flat.numel()}")
        with torch.no_grad():
            self.flat.copy_(flat)

    def peft_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The adapter's tensors under PEFT's names."""
        return {
            f"{_PREFIX}{name}.weight": matrix.detach().to(dtype, copy=True).contiguous()
            for name, matrix in self.matrices().items()
        }

    def load_peft_state(self, state: Mapping[str, Tensor]) -> None:
        """Take an adapter's tensors by PEFT's names.

        Raises:
            ValueError: the state is of other layers or of another rank.
        """
        matrices = {f"{_PREFIX}{name}.weight": matrix for name, matrix in self.matrices().items()}
        if state.keys() != matrices.keys():
            other = sorted(state.keys() ^ matrices.keys())
            raise ValueError(f"the adapter is of other layers than this model's: {', '.join(other[:3])}")
        for name, matrix in matrices.items():
            if state[name].shape != matrix.shape:
                raise ValueError(
                    f"{name} has the shape {tuple(state[name].shape)}, the slot {tuple(matrix.shape)}; "
                    f"open a slot of the adapter's rank"
                )
        with torch.no_grad():
            torch.cat([state[name].flatten().to(self.flat) for name in matrices], out=self.flat.detach())

    def close(self) -> None:
        """Give the memory back; the slot cannot be used any more."""
        self.flat = nn.Parameter(self.flat.detach().new_empty(0))
        self.shapes = {}


def attach_lora(model: nn.Module) -> None:
    """Freeze the model and replace every target linear layer by a LoraLinear, once.

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
    if not found and not lora_layers(model):
        raise ValueError(f"the base model has no linear layers named {', '.join(TARGET_MODULES)}")
    for parent, name, child in found:
        setattr(parent, name, LoraLinear(child))


def open_slot(model: nn.Module, *, rank: int, alpha: float, dropout: float = 0.0, seed: int = 0) -> Slot:
    """A fresh adapter for a model with `attach_lora`: A as in PEFT (Kaiming), B zero.

    It depends on the seed only: not on what else was drawn, nor on which slots were opened before.
    """
    layers = lora_layers(model)
    shapes: dict[str, torch.Size] = {}
    # Within a module all A stand before all B, so that layers that read the same input have one stacked A.
    parents = {name: name.rpartition(".")[0] for name in layers}
    for parent in dict.fromkeys(parents.values()):
        own = {name: layer.weight.shape for name, layer in layers.items() if parents[name] == parent}
        shapes |= {f"{name}.lora_A": torch.Size((rank, shape[1])) for name, shape in own.items()}
        shapes |= {f"{name}.lora_B": torch.Size((shape[0], rank)) for name, shape in own.items()}
    device = next(iter(layers.values())).weight.device
    flat = nn.Parameter(torch.zeros(sum(shape.numel() for shape in shapes.values()), device=device))
    slot = Slot(flat, shapes, alpha / rank, dropout, seed, torch.Generator(device))
    slot.seed_dropout(0)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, matrix in slot.matrices().items():
            if name.endswith(".lora_A"):
                fresh = torch.empty(matrix.shape)
                matrix.copy_(nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=draw))
    return slot


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by their path in the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@contextmanager
def routed(model: nn.Module, parts: Sequence[tuple[Slot | None, slice | None]]) -> Iterator[None]:
    """Within the block, each slot acts on its rows of the (flattened) input; rows are slices, None: all.

    Dropout acts where the model is in training mode.
    """
    layers = lora_layers(model)
    before = {name: layer.updates for name, layer in layers.items()}
    dtype = next(iter(layers.values())).weight.dtype
    matrices = [(slot, rows, slot.matrices(dtype)) for slot, rows in parts if slot is not None]
    for name, layer in layers.items():
        layer.updates = [
            Update(
                own[f"{name}.lora_A"],
                own[f"{name}.lora_B"],
                slot.scale,
                slot.dropout if layer.training else 0.0,
                slot.generator,
                rows,
            )
            for slot, rows, own in matrices
        ]
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.updates = before[name]


def lora_on(model: nn.Module, slot: Slot | None) -> AbstractContextManager[None]:
    """The model with this slot's adapter on every row, within the block."""
    return routed(model, [(slot, None)])


def lora_off(model: nn.Module) -> AbstractContextManager[None]:
    """The bare base model within the block: that is the teacher."""
    return routed(model, [])
