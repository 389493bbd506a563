"""The engine on vLLM, in process: AsyncLLM here, its engine core in a child process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import psutil

from server.engine import cpu_lora
from server.engine.base import (
    Adapter,
    AdapterLoadError,
    Delta,
    EngineStatus,
    EngineUnavailableError,
    Generation,
    GenerationRequest,
    joined,
)
from server.engine.cpu_lora import UnsafeEngineError
from server.engine.engine_processes import end, started_since, with_descendants
from server.engine.vllm_requests import check_length, delta_of, sampling, status_of, translated
from server.engine.vllm_settings import (
    EngineConfig,
    allowed_rank,
    cpu_environment,
    engine_args,
    environment,
)

__all__ = ["EngineConfig", "VllmEngine"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class VllmEngine:
    """Implements server.engine.base.Engine. All methods belong to the event loop that called `start`."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._llm: Any = None
        self._processes: list[psutil.Process] = []
        self._request_ids = itertools.count(1)
        self._resident: set[int] = set()
        self._loading: dict[int, asyncio.Lock] = {}
        self._in_flight: Counter[int] = Counter()
        self._adapter_requests = 0
        self._calls: set[asyncio.Future[Any]] = set()
        self._drained = asyncio.Condition()

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
        building = asyncio.create_task(asyncio.to_thread(self._build, wanted))
        try:
            await asyncio.shield(building)
            self._processes = started_since(before)
            await self._verify_operator()
            await self._running().collective_rpc("km_watch_adapters")
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

    def _build(self, wanted: threading.Event) -> None:
        config = self._config
        with environment(model=config.model, log_level=config.log_level):
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM

            on_cpu = current_platform.is_cpu()
            if on_cpu:
                cpu_lora.require_plugin(os.environ.get("VLLM_PLUGINS"))
                cpu_lora.register()
            args = engine_args(config, on_cpu=on_cpu)
            if not wanted.is_set():
                raise EngineUnavailableError("the start of the engine was called off")
            with cpu_environment(config.cpu_cores) if on_cpu else contextlib.nullcontext():
                # Not returned: the thread's future would hold it until the interpreter ends.
                self._llm = AsyncLLM.from_engine_args(args)

    async def _verify_operator(self) -> None:
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return
        for operators in await self._llm.collective_rpc("km_lora_operators"):
            if operators != [cpu_lora.OUR_WRAPPER]:
                raise UnsafeEngineError(
                    f"the engine works with the LoRA operator {operators}, which leaks adapters into other "
                    f"answers, instead of {cpu_lora.OUR_WRAPPER}. Look for 'Failed to load plugin km_server' "
                    "in vLLM's log; reinstalling KM Server (pip install -e .) usually helps."
                )

    async def status(self) -> EngineStatus:
        """What the engine is doing, and did since it started. Waits for the step that is under way."""
        llm = self._running()
        with translated():
            counted = (await self._called(llm.collective_rpc("km_adapters")))[0]
        requests = list(llm.output_processor.request_states.values())
        return status_of(
            counted,
            waiting=sum(bool(request.is_prefilling) for request in requests),
            requests=len(requests),
            asked=set(self._in_flight),
            adapter_requests=self._adapter_requests,
        )

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
        await asyncio.to_thread(end, family)
        self._resident.clear()
        self._adapter_requests = 0
        async with self._drained:
            self._drained.notify_all()

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
        async with self._holding(request.adapter):
            with translated():
                outputs = llm.generate(
                    prompt,
                    sampling(request, streaming=streaming),
                    f"km-{next(self._request_ids)}",
                    lora_request=await self._loaded(llm, request.adapter),
                    priority=request.priority,
                )
                # Closing the generator, at cancellation too, is what aborts the request in the engine.
                async with aclosing(outputs):
                    async for output in outputs:
                        yield delta_of(request, output)

    @asynccontextmanager
    async def _holding(self, adapter: Adapter | None) -> AsyncIterator[None]:
        if adapter is None:
            yield
            return
        self._in_flight[adapter.engine_id] += 1
        try:
            yield
        finally:
            self._in_flight[adapter.engine_id] -= 1
            if not self._in_flight[adapter.engine_id]:
                del self._in_flight[adapter.engine_id]
                async with self._drained:
                    self._drained.notify_all()

    # -- adapters

    async def _loaded(self, llm: Any, adapter: Adapter | None) -> Any:
        """The adapter as vLLM wants it, loaded ahead: a broken one met inside a step would end the engine."""
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(adapter.name, adapter.engine_id, str(adapter.path))
        if adapter.engine_id not in self._resident:
            async with self._loading.setdefault(adapter.engine_id, asyncio.Lock()):
                if adapter.engine_id not in self._resident:
                    await self._load(llm, adapter, lora)
            self._loading.pop(adapter.engine_id, None)
        self._adapter_requests += 1
        return lora

    async def _load(self, llm: Any, adapter: Adapter, lora: Any) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._called(llm.add_lora(lora))
        except (EngineDeadError, EngineUnavailableError):
            raise
        except Exception as error:  # vLLM reports a failure inside the engine as a bare Exception
            raise AdapterLoadError(
                f"the engine cannot load adapter {adapter.name} (id {adapter.engine_id}) from "
                f"{adapter.path}: {error}. Its files must be intact, its rank at most "
                f"{allowed_rank(self._config.max_lora_rank)} and its base model this one."
            ) from error
        self._resident.add(adapter.engine_id)

    async def evict(self, adapter: Adapter) -> bool:
        """Remove the adapter from the engine and forget cached prefixes; returns whether it was resident.

        Waits for the adapter's requests in flight. vLLM forgets cached prefixes only while nothing at all is
        running; when other requests run it keeps them, which is safe: they are keyed by the adapter's name,
        which is never used again, and by cache salt, and age out.

        Raises:
            EngineUnavailableError: the engine is not running.
        """
        llm = self._running()
        async with self._drained:
            await self._drained.wait_for(lambda: not self._in_flight[adapter.engine_id] or self._llm is None)
        llm = self._running()
        with translated():
            removed = bool(await self._called(llm.remove_lora(adapter.engine_id)))
            self._resident.discard(adapter.engine_id)
            if not await self._called(llm.reset_prefix_cache()):
                logger.info("prefix cache kept at eviction of adapter %s: other requests run", adapter.name)
        return removed
