"""The engine on vLLM, in process: AsyncLLM here, its engine core in a child process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import psutil

from server.engine.admission import Admission
from server.engine.base import (
    Adapter,
    Delta,
    EngineStatus,
    EngineUnavailableError,
    Eviction,
    Generation,
    GenerationRequest,
    joined,
)
from server.engine.cpu_lora import UnsafeEngineError
from server.engine.engine_processes import end, started_since, with_descendants
from server.engine.vllm_adapters import Verify, VllmMover
from server.engine.vllm_requests import check_length, delta_of, lora_request, sampling, translated
from server.engine.vllm_settings import EngineConfig, allowed_rank
from server.engine.vllm_start import build, verify_operator

__all__ = ["EngineConfig", "VllmEngine"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class VllmEngine:
    """Implements server.engine.base.Engine. All methods belong to the event loop that called `start`."""

    def __init__(self, config: EngineConfig, verify: Verify | None = None) -> None:
        """`verify` looks at an adapter's directory whenever it is loaded, and raises ArtifactError."""
        self._config = config
        self._llm: Any = None
        self._processes: list[psutil.Process] = []
        self._request_ids = itertools.count(1)
        self._mover = VllmMover(self._on_workers, max_rank=allowed_rank(config.max_lora_rank), verify=verify)
        self._admission = self._new_admission()
        self._running_requests = 0
        #: Prefixes of evicted adapters are cached still.
        self._prefixes_stale = False
        self._calls: set[asyncio.Future[Any]] = set()

    # -- life

    async def start(self) -> None:
        """Load the base model and be ready.

        Raises:
            EngineUnavailableError: it did not come up; the text and vLLM's log say why.
            UnsafeEngineError: vLLM's version or installation would mix adapters up.
        """
        if self._llm is not None:
            return
        before = {child.pid for child in multiprocessing.active_children()}
        wanted = threading.Event()
        wanted.set()
        # vLLM's constructor blocks for as long as the model takes to load.
        building = asyncio.create_task(asyncio.to_thread(build, self._config, wanted, self._keep))
        try:
            await asyncio.shield(building)
            self._processes = started_since(before)
            await verify_operator(self._running())
            await self._running().collective_rpc("km_manage_adapters")
            self._admission = self._new_admission()
        except UnsafeEngineError:
            await self.close()
            raise
        except (ValueError, RuntimeError, OSError) as error:
            self._processes = started_since(before)
            await self.close()
            raise EngineUnavailableError(
                f"the engine did not start with model {self._config.model}: {error}. See vLLM's log. "
                "Common causes: a model directory without weights, too little memory for the model and "
                f"kv_cache_bytes={self._config.kv_cache_bytes}, an architecture unknown to vLLM."
            ) from error
        except asyncio.CancelledError:
            wanted.clear()
            await self._abandon(building, before)
            raise

    async def _abandon(self, building: asyncio.Task[None], before: set[int | None]) -> None:
        """End a start that is under way in its thread: without its processes the constructor fails."""
        done = False
        while not done:
            await asyncio.to_thread(end, with_descendants(started_since(before)), 0.0)
            done = bool((await asyncio.wait([building], timeout=0.5))[0])
        # Its error is the consequence of what was done here.
        await asyncio.gather(building, return_exceptions=True)
        await self.close()

    def _keep(self, llm: Any) -> None:
        self._llm = llm

    async def status(self) -> EngineStatus:
        """What the engine is doing, and did since it started. Waits for the step that is under way."""
        llm = self._running()
        before = self._admission.counts
        with translated():
            counted = (await self._on_workers("km_adapters"))[0]
        adapters = self._admission.counts
        # What the engine told is of a moment between the two.
        moved = (before.loads, before.swaps, before.left_memory) != (
            adapters.loads,
            adapters.swaps,
            adapters.left_memory,
        )
        if not moved and (
            difference := self._admission.difference(counted["in_slots"], counted["in_memory"])
        ):
            logger.error("adapters are not where they should be: %s", difference)
        if counted["unasked"]:
            logger.error("vLLM moved %d adapters by itself, inside steps", counted["unasked"])
        requests = list(llm.output_processor.request_states.values())
        first = sum(bool(request.is_prefilling) for request in requests)
        return EngineStatus(
            waiting=first + adapters.waiting,
            answering=len(requests) - first,
            adapters=adapters,
            load_ms=counted["load_ms"],
            swap_ms=counted["swap_ms"],
        )

    def in_slots(self) -> frozenset[str]:
        """Names of the adapters in slots, or on their way there."""
        return self._admission.in_slots

    async def check(self) -> None:
        """Raise EngineUnavailableError unless the engine is alive."""
        llm = self._running()
        with translated():
            await llm.check_health()

    async def close(self) -> None:
        """Stop the engine and every process of it, within about 8 seconds. Idempotent."""
        llm, self._llm = self._llm, None
        processes, self._processes = self._processes, []
        family = with_descendants(processes)
        for call in self._calls:
            call.cancel()
        if llm is not None:
            llm.shutdown(timeout=0.1)
        self._admission.close(EngineUnavailableError("the inference engine was stopped: ask again"))
        await asyncio.to_thread(end, family)

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return int(self._running().model_config.max_model_len)

    def _running(self) -> Any:
        if self._llm is None:
            raise EngineUnavailableError(
                "the inference engine is not running: start it, or see its log for why it ended"
            )
        if self._llm.errored:
            raise EngineUnavailableError(
                "the inference engine has died: see its log; it is started again by itself"
            )
        return self._llm

    async def _called(self, call: Coroutine[Any, Any, T]) -> T:
        """A call of the engine's process, given up at `close`: vLLM waits for ever for one that has died."""
        calling = asyncio.ensure_future(call)
        self._calls.add(calling)
        try:
            # Not awaited: its cancellation would look like ours.
            await asyncio.wait({calling})
            if calling.cancelled():
                raise EngineUnavailableError("the inference engine was stopped: ask again when it is there")
            return calling.result()
        finally:
            self._calls.discard(calling)
            calling.cancel()

    async def _on_workers(self, method: str, *args: Any) -> list[Any]:
        """What the method of WorkerProbe returns, on every worker."""
        found: list[Any] = await self._called(self._running().collective_rpc(method, args=args))
        return found

    def _new_admission(self) -> Admission:
        config = self._config
        places = max(config.max_cpu_loras, config.max_loras)
        return Admission(self._mover, slots=config.max_loras, places=places)

    # -- generation

    async def generate(self, request: GenerationRequest) -> Generation:
        """Run one request to its end.

        Raises:
            EngineUnavailableError: the engine is not running, or (AdapterLoadError) cannot load the adapter.
            ValueError: the prompt is empty or leaves no room in the context, or (UnsupportedRequestError)
                vLLM does not take the request.
        """
        began, first_token_s, deltas = time.perf_counter(), None, []
        async with aclosing(self._deltas(request, streaming=False)) as stream:
            async for delta in stream:
                first_token_s = first_token_s or time.perf_counter() - began
                deltas.append(delta)
        return joined(request, deltas, first_token_s or 0.0)

    def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Run one request, piece by piece. Raises like `generate`."""
        return self._deltas(request, streaming=True)

    async def _deltas(self, request: GenerationRequest, *, streaming: bool) -> AsyncGenerator[Delta, None]:
        llm = self._running()
        check_length(request, self.max_model_len)
        from vllm.inputs.engine import tokens_input

        prompt = tokens_input(list(request.prompt_token_ids), cache_salt=request.cache_salt or None)
        async with self._admitted(request):
            with translated():
                outputs = llm.generate(
                    prompt,
                    sampling(request, streaming=streaming),
                    f"km-{next(self._request_ids)}",
                    lora_request=lora_request(request.adapter),
                    priority=request.priority,
                )
                # Closing the generator, at cancellation too, is what aborts the request in the engine.
                async with aclosing(outputs):
                    async for output in outputs:
                        yield delta_of(request, output)

    @asynccontextmanager
    async def _admitted(self, request: GenerationRequest) -> AsyncIterator[None]:
        """The request's adapter is in a slot, where vLLM finds it; vLLM itself never loads or swaps one."""
        async with contextlib.AsyncExitStack() as stack:
            if request.adapter is not None:
                await stack.enter_async_context(self._admission.holding(request.adapter, request.priority))
            self._running_requests += 1
            try:
                yield
            finally:
                self._running_requests -= 1
                if self._prefixes_stale and not self._running_requests:
                    self._forget_prefixes_soon()

    # -- adapters

    async def prefetch(self, adapter: Adapter) -> bool:
        """Begin to load the adapter to memory; whether it is there or on its way."""
        self._running()
        return self._admission.prefetch(adapter)

    async def retire(self, adapter: Adapter) -> int:
        """Let in no more requests for the adapter; how many were sent away that waited for a slot."""
        self._running()
        return self._admission.retire(adapter)

    async def evict(self, adapter: Adapter) -> Eviction:
        """Remove the adapter from the engine, overwrite what held it, and forget cached prefixes.

        Waits for the adapter's requests in flight. vLLM forgets cached prefixes only while nothing at all is
        running; when other requests run that is done later, which is safe: prefixes are keyed by the
        adapter's name, which is never used again, and by cache salt.

        Raises:
            EngineUnavailableError: the engine is not running.
        """
        self._running()
        in_slot, in_memory = await self._admission.evict(adapter)
        return Eviction(adapter.name, in_slot, in_memory, await self._forget_prefixes())

    async def _forget_prefixes(self) -> bool:
        """Have vLLM forget all cached prefixes; whether it did. If not, it does once nothing runs."""
        with translated():
            forgotten = bool(await self._called(self._running().reset_prefix_cache()))
        self._prefixes_stale = not forgotten
        return forgotten

    def _forget_prefixes_soon(self) -> None:
        self._prefixes_stale = False

        async def forget() -> None:
            # An engine that is gone has no prefixes.
            with contextlib.suppress(EngineUnavailableError):
                await self._forget_prefixes()

        task = asyncio.create_task(forget(), name="forget prefixes")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
