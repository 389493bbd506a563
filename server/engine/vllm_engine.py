"""The engine on vLLM, in process: AsyncLLM here, its engine core in a child process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from server.engine import cpu_lora
from server.engine.base import (
    Adapter,
    AdapterLoadError,
    Delta,
    EngineUnavailableError,
    Generation,
    GenerationRequest,
)
from server.engine.cpu_lora import UnsafeEngineError
from server.engine.engine_processes import end, started_since, with_descendants
from server.engine.vllm_requests import check_length, finish_reason, prompt_logprobs, sampling, translated
from server.engine.vllm_settings import (
    LORA_MODULES,
    allowed_rank,
    context_length,
    cpu_environment,
    cpu_scheduling,
    environment,
    executor,
    resolve_dtype,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the engine is to run. Lengths in tokens.

    `max_lora_rank` is rounded up to a rank vLLM knows; slots are padded to it, so keep it tight.
    `max_model_len` is capped by the model's context. `dtype` "auto" is bfloat16 where the CPU computes it,
    else float32. `cpu_cores` like "0-3,8" (default: every core this process may use).
    """

    model: Path | str
    max_loras: int = 8
    max_lora_rank: int = 16
    max_cpu_loras: int = 64
    max_model_len: int = 4096
    kv_cache_bytes: int = 2**30
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 4096
    dtype: str = "auto"
    seed: int = 0
    cpu_cores: str | None = None
    lora_modules: tuple[str, ...] = LORA_MODULES
    log_level: str = "WARNING"


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
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM

            on_cpu = current_platform.is_cpu()
            if on_cpu:
                cpu_lora.require_plugin(os.environ.get("VLLM_PLUGINS"))
                cpu_lora.register()
            max_model_len = min(config.max_model_len, context_length(config.model))
            args = AsyncEngineArgs(
                model=str(config.model),
                dtype=resolve_dtype(config.dtype, on_cpu=on_cpu),
                seed=config.seed,
                max_model_len=max_model_len,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=max(config.max_num_batched_tokens, max_model_len),
                **(cpu_scheduling() if on_cpu else {}),
                kv_cache_memory_bytes=config.kv_cache_bytes,
                enable_prefix_caching=True,
                scheduling_policy="priority",
                enable_lora=True,
                max_loras=config.max_loras,
                max_lora_rank=allowed_rank(config.max_lora_rank),
                max_cpu_loras=max(config.max_cpu_loras, config.max_loras),
                # Also keeps vLLM from wrapping the embedding and the output head, which cost every step.
                lora_target_modules=list(config.lora_modules),
                worker_extension_cls=f"{cpu_lora.WorkerProbe.__module__}.{cpu_lora.WorkerProbe.__qualname__}",
                disable_log_stats=True,
                **executor(on_cpu=on_cpu),
            )
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
        if llm is not None:
            llm.shutdown(timeout=0.1)
        await asyncio.to_thread(end, family)
        self._resident.clear()
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
                "the inference engine has died: see its log, then restart the server"
            )
        return self._llm

    # -- generation

    async def generate(self, request: GenerationRequest) -> Generation:
        """Run one request to its end.

        Raises:
            EngineUnavailableError: the engine is not running, or (AdapterLoadError) cannot load the adapter.
            ValueError: the prompt is empty or leaves no room in the context.
        """
        last: Any = None
        async for output in self._outputs(request, streaming=False):
            last = output
        completion = last.outputs[0]
        scoring = request.max_tokens == 0
        return Generation(
            text="" if scoring else completion.text,
            token_ids=() if scoring else tuple(completion.token_ids),
            finish_reason="length" if scoring else finish_reason(completion),
            prompt_tokens=len(request.prompt_token_ids),
            prompt_logprobs=prompt_logprobs(request, last.prompt_logprobs)
            if request.prompt_logprobs
            else None,
        )

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Run one request, piece by piece. Raises like `generate`."""
        async for output in self._outputs(request, streaming=True):
            completion = output.outputs[0]
            yield Delta(
                text=completion.text,
                token_ids=tuple(completion.token_ids),
                finish_reason=finish_reason(completion) if output.finished else None,
            )

    async def _outputs(self, request: GenerationRequest, *, streaming: bool) -> AsyncIterator[Any]:
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
                        yield output

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
        return lora

    async def _load(self, llm: Any, adapter: Adapter, lora: Any) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await llm.add_lora(lora)
        except EngineDeadError:
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
            removed = bool(await llm.remove_lora(adapter.engine_id))
            self._resident.discard(adapter.engine_id)
            if not await llm.reset_prefix_cache():
                logger.info("prefix cache kept at eviction of adapter %s: other requests run", adapter.name)
        return removed
