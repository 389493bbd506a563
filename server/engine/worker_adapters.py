"""In vLLM's worker: adapters are checked when they are loaded, moved as residency says, and overwritten."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

_KEPT = {"F16": torch.float16, "BF16": torch.bfloat16}


class UnfitAdapterError(ValueError):
    """The adapter's weights cannot be used with this model."""


class WorkerAdapters:
    """Works on vLLM's LoRA manager: its registered adapters are memory, its active ones are in slots."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._slots = manager._adapter_manager
        self._load_ms = self._swap_ms = 0.0
        #: Loads and swaps that vLLM made by itself, inside a step: there should be none.
        self._unasked = 0
        self._asked = False
        #: Slots that adapters left with their weights in them.
        self._left: set[int] = set()
        # vLLM loads what a step lacks, and puts it into a slot, through these.
        manager._load_adapter = self._watched(manager._load_adapter)
        self._slots.activate_adapter = self._watched(self._slots.activate_adapter)

    def move(
        self,
        drop: Sequence[int],
        vacate: Sequence[int],
        load: tuple[str, int, str] | None,
        place: int | None,
    ) -> None:
        """Make room, load (name, id, path) to memory unless it is there, put an adapter into a slot.

        Raises:
            Exception: vLLM's, or UnfitAdapterError: the adapter cannot be used, and is nowhere. Room that was
                made stays made.
        """
        for engine_id in drop:
            self._remove(engine_id)
        for engine_id in vacate:
            self._left.update(self._slot_of(engine_id))
            self._slots.deactivate_adapter(engine_id)
        self._asked = True
        try:
            if load is not None and load[1] not in self._slots.list_adapters():
                self._load_ms += _timed_ms(lambda: self._load(*load))
            if place is not None:
                self._swap_ms += _timed_ms(lambda: self._slots.activate_adapter(place))
        except Exception:
            self._remove(place if place is not None else load[1] if load else 0)
            raise
        finally:
            self._asked = False

    def forget(self, engine_id: int) -> bool:
        """Remove the adapter, and overwrite its weights, also in slots that it left long ago. Whether it was
        in memory."""
        known = self._remove(engine_id)
        for index in self._left:
            # One that another adapter came to was overwritten then.
            if self._slots.lora_index_to_id[index] is None:
                self._overwrite(index)
        self._left.clear()
        return known

    def counted(self) -> dict[str, Any]:
        """The ids of adapters in slots and in memory, and what all movements so far took."""
        return {
            "in_slots": [int(id_) for id_ in self._slots.lora_index_to_id if id_ is not None],
            "in_memory": [int(id_) for id_ in self._slots.list_adapters()],
            "load_ms": self._load_ms,
            "swap_ms": self._swap_ms,
            "unasked": self._unasked,
        }

    def traces(self) -> int:
        """How many numbers that are not zero there are in slots that hold no adapter."""
        empty = [index for index, holds in enumerate(self._slots.lora_index_to_id) if holds is None]
        return sum(
            int(torch.count_nonzero(stacked[index]))
            for module in self._slots.modules.values()
            for stacked in (*module.lora_a_stacked, *module.lora_b_stacked)
            for index in empty
        )

    def _load(self, name: str, engine_id: int, path: str) -> None:
        from vllm.lora.request import LoRARequest

        with self._kept_as(_stored_dtype(Path(path))):
            lora = self._manager._load_adapter(LoRARequest(name, engine_id, path))
        for layer in lora.loras.values():
            # Not the file itself, mapped into memory: who cuts that short would end the engine.
            layer.lora_a, layer.lora_b = layer.lora_a.clone(), layer.lora_b.clone()
        # This multiplies its scale in.
        self._slots.add_adapter(lora)
        self._check_fits(lora)
        for weights in _weights(lora):
            # One sum finds every NaN and infinity, in a third of the time of looking at each number.
            if not torch.isfinite(weights.sum(dtype=torch.float32)):
                raise UnfitAdapterError("it holds numbers that are not finite; train it again")

    @contextmanager
    def _kept_as(self, stored: torch.dtype | None) -> Iterator[None]:
        """In memory adapters stay as they are on disk: half as large, where the engine computes in float32.

        Only where that is exact: their scale is multiplied in, and that must not round.
        """
        config = self._manager.lora_config
        dtype = config.lora_dtype
        config.lora_dtype = stored or dtype
        try:
            yield
        finally:
            config.lora_dtype = dtype

    def _check_fits(self, lora: Any) -> None:
        """Refuse what vLLM would pass over, or find out in a step: layers and shapes of another model."""
        unknown = sorted(set(lora.loras) - set(self._slots.modules))
        if unknown:
            raise UnfitAdapterError(f"it adapts layers that this model has not (first: {unknown[0]})")
        for name, layer in lora.loras.items():
            module = self._slots.modules[name]
            if getattr(module, "tp_size", 1) > 1:
                continue
            for index, (a, b) in enumerate(zip(_listed(layer.lora_a), _listed(layer.lora_b), strict=True)):
                if a is None:
                    continue
                slot_a, slot_b = module.lora_a_stacked[index], module.lora_b_stacked[index]
                if (a.shape[1], b.shape[0]) != (slot_a.shape[-1], slot_b.shape[-2]):
                    raise UnfitAdapterError(
                        f"layer {name} has {a.shape[1]} inputs and {b.shape[0]} outputs in it, and "
                        f"{slot_a.shape[-1]} and {slot_b.shape[-2]} in this model"
                    )

    def _remove(self, engine_id: int) -> bool:
        lora = self._slots.list_adapters().get(engine_id)
        slot = self._slot_of(engine_id)
        removed = bool(self._slots.remove_adapter(engine_id))
        for index in slot:
            self._overwrite(index)
        if lora is not None:
            for weights in _weights(lora):
                weights.zero_()
        return removed

    def _slot_of(self, engine_id: int) -> list[int]:
        """The index of the slot that the adapter is in; none if it is in none."""
        return [index for index, holds in enumerate(self._slots.lora_index_to_id) if holds == engine_id]

    def _overwrite(self, index: int) -> None:
        for module in self._slots.modules.values():
            module.reset_lora(index)

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            done = method(*args)
            # Called for every adapter in every step; most are in their slots already, which is False.
            if done and not self._asked:
                self._unasked += 1
            return done

        return call


def _weights(lora: Any) -> Iterator[torch.Tensor]:
    for layer in lora.loras.values():
        for weights in (*_listed(layer.lora_a), *_listed(layer.lora_b)):
            if weights is not None:
                yield weights


def _stored_dtype(directory: Path) -> torch.dtype | None:
    """What an adapter's numbers are stored as; None where they may not be kept so, or cannot be read."""
    try:
        config = json.loads((directory / "adapter_config.json").read_bytes())
        mantissa, exponent = math.frexp(config["lora_alpha"] / config["r"])
        with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
            stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  no dictionary
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError):
        # vLLM says what is wrong with them.
        return None
    power_of_two_from_1 = mantissa == 0.5 and exponent >= 1
    return _KEPT.get(stored.pop()) if power_of_two_from_1 and len(stored) == 1 else None


def _listed(weights: Any) -> list[Any]:
    """The weights of a packed layer's slices, or of the one."""
    return list(weights) if isinstance(weights, list | tuple) else [weights]


def _timed_ms(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000
