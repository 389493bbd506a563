"""Published KMs as slots that are read, never trained: what a KE learns beside."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from km_registry import artifacts
from km_registry.base_model import BaseModel
from km_registry.ke_recipe import KEDocument
from trainer_worker.lora import Slot, open_slot


class FrozenKMs:
    """The KMs of documents, at most `most` of them in memory."""

    def __init__(self, model: Any, base: BaseModel, *, most: int = 64) -> None:
        self._model = model
        self._base = base
        self._most = most
        self._slots: OrderedDict[str, Slot] = OrderedDict()

    def of(self, document: KEDocument) -> Slot | None:
        """The document's KM, None if it has none.

        Raises:
            ArtifactError: its files are not what was written, or it is for another base model.
        """
        if document.km is None:
            return None
        slot = self._slots.pop(document.km, None) or self._read(Path(document.km))
        self._slots[document.km] = slot
        if len(self._slots) > self._most:
            self._slots.popitem(last=False)
        return slot

    def _read(self, directory: Path) -> Slot:
        manifest = artifacts.verify(directory, base_fingerprint=self._base.fingerprint)
        slot = open_slot(self._model, rank=manifest["rank"], alpha=manifest["alpha"])
        slot.load_peft_state(load_file(directory / artifacts.WEIGHTS))
        slot.flat.requires_grad_(False)
        return slot
