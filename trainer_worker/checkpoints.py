"""A run's checkpoint: one file, whole or not there, and believed only by the run it was written for."""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from km_registry.artifacts import atomic_write
from trainer_worker.targets import raw

_log = structlog.get_logger(__name__)

_FORMAT = 1
#: The file's name in its directory.
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors by name, and everything else as JSON."""

    tensors: dict[str, Tensor]
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The place of a run's checkpoint. `digest` stands for all that decides the run's result; files are made
    within `writing`."""

    directory: Path
    digest: str
    writing: Callable[[], AbstractContextManager[None]] = nullcontext

    def save(self, checkpoint: Checkpoint) -> None:
        """Put it in the place of the one before; a crash leaves the one or the other.

        Raises:
            KMError: `writing` says that nothing may be written any more.
        """
        header = {"format": _FORMAT, "digest": self.digest, "fields": checkpoint.fields}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        header["crc32"] = _checksum(tensors)
        data = save(tensors, metadata={"run": json.dumps(header)})
        try:
            with self.writing():
                atomic_write(self.directory / CHECKPOINT, data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # The training can do without; the checkpoint before is still there.
            _log.warning("the disk is full; the checkpoint is not written", bytes=len(data))

    def load(self) -> Checkpoint | None:
        """The checkpoint; None when there is none, it is damaged, or it is another run's."""
        path = self.directory / CHECKPOINT
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get("run", "{}"))
            tensors = load(path.read_bytes())
        except (SafetensorError, ValueError) as error:
            _log.warning("the checkpoint is damaged and is ignored", error=str(error))
            return None
        if header.get("format") != _FORMAT or header.get("digest") != self.digest:
            _log.warning("the checkpoint is of another recipe or other samples and is ignored")
            return None
        if header["crc32"] != _checksum(tensors):
            _log.warning("the checkpoint is damaged and is ignored", error="checksums differ")
            return None
        return Checkpoint(tensors, header["fields"])


def of_optimizer(optimizer: Optimizer, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """The optimizer's state of these parameters, as a checkpoint's tensors."""
    return {
        f"adam.{n}.{name}": value
        for n, parameter in enumerate(parameters)
        for name, value in optimizer.state[parameter].items()
    }


def into_optimizer(optimizer: Optimizer, parameters: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Put the state that `of_optimizer` took back, onto each parameter's device."""
    for n, parameter in enumerate(parameters):
        prefix = f"adam.{n}."
        optimizer.state[parameter] = {
            name.removeprefix(prefix): tensor.to(parameter.device)
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }


def _checksum(tensors: dict[str, Tensor]) -> int:
    value = 0
    for _, tensor in sorted(tensors.items()):
        value = zlib.crc32(raw(tensor), value)
    return value
