"""vLLM's CPU LoRA operator, replaced: the stock one applies the last adapter to rows of the base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.utils.torch_utils import direct_register_custom_op

from server.engine import native_lora
from server.engine.masked_lora import (
    BatchPlan,
    JoinedWeights,
    add_lora,
    add_rows,
    check_rows,
    plan_batch,
    take_rows,
)
from server.engine.native_lora import NativeLayer, NativeRows

#: That of this process's engine.
_wrappers: list[MaskedPunicaWrapper] = []


def _add_lora(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float) -> None:
    _wrappers[-1].add(y, x, a, b, scale)


def _made_of_nothing(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float) -> None:
    """What the compiler needs to know: nothing new is made."""


#: To the compiler an operator like any other, whose inside it does not look at.
_library = torch.library.Library("km", "FRAGMENT")  # type: ignore[no-untyped-call]
direct_register_custom_op(
    "add_lora", _add_lora, mutates_args=["y"], fake_impl=_made_of_nothing, target_lib=_library
)


class MaskedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is untyped here
    """Applies each row's own adapter and nothing to rows without one.

    The batch is planned once in `update_metadata`, not in each of a model's layers.
    """

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, **kwargs: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        self._tokens: BatchPlan = plan_batch(())
        self._samples: BatchPlan = plan_batch(())
        _wrappers[:] = [self]
        self._native = native_lora.loaded()
        self._rows: NativeRows | None = None
        # By where the layer's first slice of A lies: it stays there as long as the model.
        self._layers: dict[int, NativeLayer] = {}

    @property
    def is_native(self) -> bool:
        """Whether small steps go through the compiled operator."""
        return self._native is not None

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        """Take over the adapters of the next batch's rows."""
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        self._tokens = plan_batch(self.token_lora_indices.tolist())
        self._samples = plan_batch(self.sampler_indices.tolist())
        self._rows = self._native.rows(self._tokens) if self._native else None

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,  # noqa: ARG002  (vLLM's signature)
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Add the deltas of a linear layer, packed or not, to y in place."""
        if torch.compiler.is_compiling():
            _check_slices(lora_b_stacked, output_slices)
            torch.ops.km.add_lora(y, x, list(lora_a_stacked), list(lora_b_stacked), scale)
        elif self._tokens.groups:
            if lora_a_stacked[0].data_ptr() not in self._layers:
                _check_slices(lora_b_stacked, output_slices)
            self.add(y, x, lora_a_stacked, lora_b_stacked, scale)

    def add(self, y: Tensor, x: Tensor, a: Sequence[Tensor], b: Sequence[Tensor], scale: float) -> None:
        """The same, of a layer whose slices are known to be what its weights are for."""
        if not self._tokens.groups:
            return
        layer = self._layers.get(a[0].data_ptr())
        if layer is None:
            layer = NativeLayer(JoinedWeights(a, b), scale)
            self._layers[a[0].data_ptr()] = layer
        rows_y = y if y.dim() == 2 else y.view(-1, y.shape[-1])
        rows_x = x if x.dim() == 2 else x.view(-1, x.shape[-1])
        if self._native and self._rows and self._native.takes(rows_y, rows_x, layer):
            check_rows(self._tokens, rows_x)
            self._native.add(rows_y, rows_x, layer, self._rows)
        else:
            weights = layer.weights
            add_lora(rows_y, rows_x, weights.a, weights.b, self._tokens, scale, weights.width)

    def add_shrink(
        self,
        y: tuple[Tensor, ...] | Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        scale: float,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """First half of add_lora_linear, for layers that communicate in between."""
        _refuse_compiled()
        if not self._tokens.groups:
            return
        x = x.view(-1, x.shape[-1])
        check_rows(self._tokens, x)
        for i, a in enumerate(lora_a_stacked):
            for group in self._tokens.groups:
                hidden = torch.mm(take_rows(x, group), a[group.slot, 0].float().t())
                add_rows(y[i].view(-1, y[i].shape[-1]), group, hidden, scale)

    def add_expand(
        self,
        y: Tensor,
        x: tuple[Tensor, ...] | Tensor,
        lora_b_stacked: tuple[Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Second half of add_lora_linear. Without `add_inputs` the rows with an adapter are overwritten."""
        _refuse_compiled()
        if not self._tokens.groups:
            return
        y = y.view(-1, y.shape[-1])
        offset = offset_start
        for i, (b, width) in enumerate(zip(lora_b_stacked, output_slices, strict=True)):
            self._expand(y[:, offset : offset + width], x[i], b.squeeze(1), add_inputs=add_inputs)
            offset += width

    def add_lora_embedding(
        self,
        y: Tensor,
        x: Tensor,
        lora_b_stacked: Tensor,
        add_inputs: bool = True,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Second half for an embedding layer, whose first half is a table."""
        _refuse_compiled()
        if self._tokens.groups:
            self._expand(y.view(-1, y.shape[-1]), x, lora_b_stacked.squeeze(1), add_inputs=add_inputs)

    def _expand(self, y: Tensor, x: Tensor, b: Tensor, *, add_inputs: bool) -> None:
        x = x.view(-1, x.shape[-1])
        check_rows(self._tokens, x)
        for group in self._tokens.groups:
            if not add_inputs:
                rows = slice(group.start, group.stop) if group.index is None else group.index
                y[rows] = 0
            add_rows(y, group, torch.mm(take_rows(x, group), b[group.slot].float().t()))

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        *,
        buffer: Tensor | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Add the deltas of an adapted output head to the logits in place."""
        if self._samples.groups:
            a, b = lora_a_stacked.squeeze(1), lora_b_stacked.squeeze(1)
            add_lora(y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), a, b, self._samples, scale)


def _refuse_compiled() -> None:
    """The compiler would keep the plan of the batch that it happens to see, and apply it to later ones."""
    if torch.compiler.is_compiling():
        raise RuntimeError("this model's layers cannot be compiled with LoRA: unset KM_COMPILE")


def _check_slices(b: Sequence[Tensor], output_slices: tuple[int, ...]) -> None:
    if output_slices != tuple(one.shape[2] for one in b):
        raise RuntimeError(
            f"LoRA weights of sizes {[one.shape[2] for one in b]} for output slices {output_slices}: this "
            "model's layers are not supported by server.engine.cpu_lora."
        )
