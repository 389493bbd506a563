"""KM and KE in one LoRA, differentiable in the KE: what `km_registry.compose` writes, as it is trained.

For every adapted layer A = [A_M ; A_E] and B = [w_M·s_M·B_M , w_E·s_E·B_E] with s = alpha / rank, so that B·A
is w_M·s_M·B_M·A_M + w_E·s_E·B_E·A_E exactly (paper, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer_worker.lora import Slot

#: Where both scalars of every layer begin.
START = 0.5
_A, _B = ".lora_A", ".lora_B"


@dataclass(slots=True)
class Scalars:
    """w_M and w_E of every adapted layer, in the order of `layers`: `values_L2`, float32."""

    values_L2: nn.Parameter
    layers: tuple[str, ...]

    @classmethod
    def of(cls, slot: Slot) -> Scalars:
        """Fresh ones for the layers that the slot adapts."""
        layers = tuple(name.removesuffix(_A) for name in slot.shapes if name.endswith(_A))
        return cls(nn.Parameter(torch.full((len(layers), 2), START, device=slot.flat.device)), layers)

    def by_layer(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(w_M, w_E) of each layer, each of shape (1,)."""
        pairs = zip(self.layers, self.values_L2, strict=True)
        return {layer: (pair_2[0:1], pair_2[1:2]) for layer, pair_2 in pairs}

    def state(self) -> dict[str, Tensor]:
        """`<layer>.w_M` and `<layer>.w_E`, float32 copies of shape (1,): a KE's `composition.safetensors`."""
        named = {}
        for layer, (w_m, w_e) in self.by_layer().items():
            named[f"{layer}.w_M"], named[f"{layer}.w_E"] = w_m.detach().clone(), w_e.detach().clone()
        return named


def mixed(km: Slot | None, ke: Slot, scalars: Scalars) -> Slot:
    """The composite of a frozen KM (None: the KE alone) and the KE; its gradient flows to KE and scalars.

    Raises:
        ValueError: the KM adapts other layers than the KE.
    """
    own, frozen = ke.matrices(), None if km is None else km.matrices()
    if frozen is not None and frozen.keys() != own.keys():
        other = sorted(frozen.keys() ^ own.keys())
        raise ValueError(f"the KM adapts other layers than the KE: {', '.join(other[:3])}")
    weights = scalars.by_layer()
    matrices: dict[str, Tensor] = {}
    for name, matrix in own.items():
        layer, kind = name[: -len(_A)], name[-len(_A) :]
        w_m, w_e = weights[layer]
        part = matrix if kind == _A else matrix * (w_e * ke.scale)
        if frozen is not None and km is not None:
            theirs = frozen[name].detach()
            theirs = theirs if kind == _A else theirs * (w_m * km.scale)
            part = torch.cat([theirs, part], dim=0 if kind == _A else 1)
        matrices[name] = part
    return _slot(matrices, ke)


def _slot(matrices: Mapping[str, Tensor], ke: Slot) -> Slot:
    """A slot over these matrices, whose B already hold every scale."""
    flat = torch.cat([matrix.reshape(-1) for matrix in matrices.values()])
    shapes = {name: matrix.shape for name, matrix in matrices.items()}
    return Slot(flat, shapes, 1.0, ke.dropout, ke.seed, ke.generator)
