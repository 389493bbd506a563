"""Moves adapters in vLLM's worker, over vLLM's calls of its processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from km_registry.errors import ArtifactError
from server.engine.base import Adapter, AdapterLoadError, EngineUnavailableError
from server.engine.residency import Move

#: Makes sure that an adapter's files are what was written, or raises ArtifactError. Blocking.
Verify = Callable[[Path], object]


class VllmMover:
    """Implements server.engine.admission.Mover. `call` runs a method of WorkerProbe on every worker."""

    def __init__(
        self, call: Callable[..., Awaitable[list[Any]]], *, max_rank: int, verify: Verify | None = None
    ) -> None:
        self._call = call
        self._max_rank = max_rank
        self._verify = verify

    async def prepare(self, adapter: Adapter) -> None:
        """Verify the adapter's files. AdapterLoadError when they are not what was written."""
        if self._verify is not None:
            try:
                await asyncio.to_thread(self._verify, adapter.path)
            except (ArtifactError, OSError) as error:
                raise self._refusal(adapter, error) from error

    async def move(self, move: Move, adapter: Adapter) -> None:
        """Make the move. AdapterLoadError when the adapter cannot be loaded."""
        from vllm.v1.engine.exceptions import EngineDeadError

        load = (adapter.name, adapter.engine_id, str(adapter.path)) if move.load else None
        place = adapter.engine_id if move.place else None
        try:
            await self._call("km_move", move.drop, move.vacate, load, place)
        except EngineDeadError as error:
            raise EngineUnavailableError("the inference engine has died: see its log") from error
        except EngineUnavailableError:
            raise
        except Exception as error:  # vLLM reports a failure inside the engine as a bare Exception
            raise self._refusal(adapter, error) from error

    async def forget(self, adapter: Adapter) -> None:
        """Remove the adapter wherever it is, and overwrite what held it."""
        from server.engine.vllm_requests import translated

        with translated():
            await self._call("km_forget", adapter.engine_id)

    def _refusal(self, adapter: Adapter, error: Exception) -> AdapterLoadError:
        return AdapterLoadError(
            f"the engine cannot load adapter {adapter.name} (id {adapter.engine_id}) from {adapter.path}: "
            f"{error}. Its files must be intact, its rank at most {self._max_rank} and its base model this "
            "one."
        )
