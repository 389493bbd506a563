"""LoRA for one batch on a CPU, in torch only: each adapter's rows together, the others untouched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: From this many adapters in a step on, small steps go through one batched matmul per side.
_BATCHED_FROM_SLOTS = 3
#: Padding may at most double the rows of a batched matmul; beyond that one pair per adapter is cheaper.
_MAX_PADDING = 2
#: Largest padded rows per adapter for which the per-call cost, not the arithmetic, decides.
_BATCHED_MAX_ROWS = 16


@dataclass(frozen=True, slots=True)
class SlotRows:
    """The rows of a batch that carry one adapter: `start:stop` when `index` is None, else `index`."""

    slot: int
    start: int
    stop: int
    index: Tensor | None


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """Rows of several adapters as one block of `per_slot` rows for every slot in `first:last`."""

    first: int
    last: int
    per_slot: int
    gather: Tensor  # row of the batch for every place in the block
    places: Tensor  # the places in the block that hold a real row
    rows: Tensor  # the row of the batch for each of `places`


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Which rows of a batch belong to which slot; rows of the base model (slot -1) are in no group."""

    size: int
    groups: tuple[SlotRows, ...]
    padded: PaddedRows | None


def plan_batch(slots: Sequence[int]) -> BatchPlan:
    """Group a batch's rows, given the slot of each row (-1: base model)."""
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            rows_of.setdefault(slot, []).append(row)
    ordered = dict(sorted(rows_of.items()))
    groups = tuple(_slot_rows(slot, rows) for slot, rows in ordered.items())
    return BatchPlan(size=len(slots), groups=groups, padded=_padded(ordered))


def _slot_rows(slot: int, rows: list[int]) -> SlotRows:
    start, stop = rows[0], rows[-1] + 1
    contiguous = stop - start == len(rows)
    return SlotRows(slot, start, stop, None if contiguous else torch.tensor(rows))


def _padded(rows_of: dict[int, list[int]]) -> PaddedRows | None:
    if len(rows_of) < _BATCHED_FROM_SLOTS:
        return None
    first, last = min(rows_of), max(rows_of) + 1
    per_slot = max(len(rows) for rows in rows_of.values())
    real = sum(len(rows) for rows in rows_of.values())
    if per_slot > _BATCHED_MAX_ROWS or (last - first) * per_slot > max(
        _MAX_PADDING * real, 2 * (last - first)
    ):
        return None
    # Padding repeats a row that is in the batch anyway; its results are never written anywhere.
    gather = [next(iter(rows_of.values()))[0]] * ((last - first) * per_slot)
    places: list[int] = []
    rows: list[int] = []
    for slot, slot_rows in rows_of.items():
        for i, row in enumerate(slot_rows):
            place = (slot - first) * per_slot + i
            gather[place] = row
            places.append(place)
            rows.append(row)
    return PaddedRows(first, last, per_slot, torch.tensor(gather), torch.tensor(places), torch.tensor(rows))


class JoinedWeights:
    """A layer's slots, of all its slices together: a of (slots, ranks, in), b of (slots, outs, ranks).

    Slots are as wide as the widest adapter that the engine takes; `width` says how much of one is filled.
    """

    def __init__(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        self.given = a
        self.outs = [one.shape[2] for one in b]
        self.a, self.b = merge_slices(a, b)
        self._slices = len(a)
        self._written = -1
        self._widths: dict[int, int] = {}

    def written(self) -> int:
        """Another number after every write, also that of another adapter under the same engine id."""
        return sum([tensor._version for tensor in self.given])

    def width(self, slot: int) -> int:
        """How many of a slot's ranks, counted over all slices, its adapter has; the others are zero."""
        written = self.written()
        if written != self._written:
            self._written = written
            self._widths.clear()
        known = self._widths.get(slot)
        if known is None:
            filled = (self.a[slot] != 0).any(dim=1).nonzero()
            ranks = int(filled[-1]) // self._slices + 1 if len(filled) else 0
            known = self._widths[slot] = ranks * self._slices
        return known


def add_lora(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    plan: BatchPlan,
    scale: float = 1.0,
    width: Callable[[int], int] | None = None,
) -> None:
    """`y[rows] += scale * (x[rows] @ a[slot].T) @ b[slot].T` for every group of the plan, in place.

    Args:
        y: (rows, out).
        x: (rows, in).
        a: (slots, rank, in).
        b: (slots, out, rank); out may be smaller than y's, which then is padding.
        plan: the batch's groups. y and x may have more rows than the plan (padding), never fewer.
        scale: factor on the delta.
        width: how many of a slot's ranks are filled; without it all are taken for filled.

    Sums are in float32 and the delta is rounded to y's type once. Base rows are neither read nor written.

    Raises:
        RuntimeError: fewer rows than the plan tells of.
    """
    if not plan.groups:
        return
    check_rows(plan, x)
    y = y[:, : b.shape[1]]
    if plan.padded is not None:
        if width is not None:
            widest = max(width(slot) for slot in range(plan.padded.first, plan.padded.last))
            a, b = a[:, :widest], b[:, :, :widest]
        _add_padded(y, x, a, b, plan.padded, scale)
        return
    for group in plan.groups:
        slot_a, slot_b = a[group.slot], b[group.slot]
        if width is not None:
            filled = width(group.slot)
            slot_a, slot_b = slot_a[:filled], slot_b[:, :filled]
        hidden = torch.mm(take_rows(x, group), slot_a.float().t())
        add_rows(y, group, torch.mm(hidden, slot_b.float().t()), scale)


def _add_padded(y: Tensor, x: Tensor, a: Tensor, b: Tensor, padded: PaddedRows, scale: float) -> None:
    slots = slice(padded.first, padded.last)
    block = x.index_select(0, padded.gather).float()
    block = block.view(padded.last - padded.first, padded.per_slot, x.shape[1])
    hidden = torch.bmm(block, a[slots].float().transpose(1, 2))
    delta = torch.bmm(hidden, b[slots].float().transpose(1, 2)).view(-1, b.shape[1])
    if padded.places.shape[0] != delta.shape[0]:
        delta = delta.index_select(0, padded.places)
    y.index_add_(0, padded.rows, delta.to(y.dtype), alpha=scale)


def check_rows(plan: BatchPlan, x: Tensor) -> None:
    """Refuse a tensor that is not this batch's.

    Raises:
        RuntimeError: fewer rows than the plan tells of.
    """
    if x.shape[0] < plan.size:
        raise RuntimeError(
            f"LoRA got {x.shape[0]} rows but the batch has {plan.size}: rows and adapters would be mixed up. "
            "This version of vLLM is not supported by server.engine.cpu_lora."
        )


def take_rows(x: Tensor, group: SlotRows) -> Tensor:
    """The group's rows of x, in float32."""
    if group.index is None:
        return x[group.start : group.stop].float()
    return x.index_select(0, group.index).float()


def add_rows(y: Tensor, group: SlotRows, delta: Tensor, scale: float = 1.0) -> None:
    """Add `scale * delta` to the group's rows of y."""
    delta = delta.to(y.dtype)
    if group.index is None:
        y[group.start : group.stop].add_(delta, alpha=scale)
    else:
        y.index_add_(0, group.index, delta, alpha=scale)


def merge_slices(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Join the slices of a packed layer (q, k, v) so that one matmul pair serves all of them.

    The given tensors, (slots, 1, rank, in) and (slots, 1, out, rank), become views of the joined ones:
    weights written through them later are seen here too. b is joined block-diagonally. The slices' ranks take
    turns, so that what an adapter of a lower rank leaves empty is at the end.

    Returns:
        a of (slots, ranks, in) and b of (slots, outs, ranks).

    Raises:
        RuntimeError: the slices have not the same rank.
    """
    slots, inner = a[0].shape[0], a[0].shape[3]
    ranks = {t.shape[3] for t in b}
    if len(ranks) > 1:
        raise RuntimeError(
            f"LoRA slices of ranks {sorted(ranks)}: this model's layers are not supported by "
            "server.engine.cpu_lora."
        )
    count, joined_rank = len(a), len(a) * ranks.pop()
    outs = [t.shape[2] for t in b]
    # vLLM runs the model in inference mode but loads adapters outside of it, where an inference tensor could
    # not be written.
    with torch.inference_mode(mode=False):
        joined_a = a[0].new_zeros(slots, 1, joined_rank, inner)
        # Transposed in memory: what an adapter of a lower rank fills is one block then, in b as in a.
        joined_b = b[0].new_zeros(slots, 1, joined_rank, sum(outs)).transpose(2, 3)
        out_at = 0
        for i, (slice_a, slice_b, out) in enumerate(zip(a, b, outs, strict=True)):
            _rebind(slice_a, joined_a[:, :, i::count, :])
            _rebind(slice_b, joined_b[:, :, out_at : out_at + out, i::count])
            out_at += out
    return joined_a.squeeze(1), joined_b.squeeze(1)


def _rebind(tensor: Tensor, view: Tensor) -> None:
    view.copy_(tensor)
    tensor.data = view
