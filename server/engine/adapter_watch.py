"""Counts, in vLLM's worker, how adapters move: from disk to memory, and from memory to an engine's slot."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class AdapterWatch:
    """Put around the methods of vLLM's LoRA manager that load adapters and fill slots."""

    def __init__(self, manager: Any) -> None:
        self._slots = manager._adapter_manager
        self._loads, self._load_ms = 0, 0.0
        self._swaps, self._swap_ms = 0, 0.0
        load, activate = manager._load_adapter, self._slots.activate_adapter
        manager._load_adapter = lambda request: self._loading(load, request)
        self._slots.activate_adapter = lambda engine_id: self._activating(activate, engine_id)

    def counted(self) -> dict[str, Any]:
        """How many slots there are, the ids of adapters in them and in memory, and all movements so far."""
        return {
            "slots": int(self._slots.lora_slots),
            "in_slots": [int(id_) for id_ in self._slots.lora_index_to_id if id_ is not None],
            "in_memory": [int(id_) for id_ in self._slots.list_adapters()],
            "loads": self._loads,
            "load_ms": self._load_ms,
            "swaps": self._swaps,
            "swap_ms": self._swap_ms,
        }

    def _loading(self, load: Callable[[Any], Any], request: Any) -> Any:
        began = time.perf_counter()
        loaded = load(request)
        self._loads += 1
        self._load_ms += (time.perf_counter() - began) * 1000
        return loaded

    def _activating(self, activate: Callable[[int], bool], engine_id: int) -> bool:
        began = time.perf_counter()
        moved = activate(engine_id)
        # Called for every adapter in every step; most are in their slots already.
        if moved:
            self._swaps += 1
            self._swap_ms += (time.perf_counter() - began) * 1000
        return moved
