"""Starting vLLM: in the right environment, with our LoRA operator or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

from server.engine import cpu_lora, native_lora
from server.engine.base import EngineUnavailableError
from server.engine.cpu_lora import UnsafeEngineError
from server.engine.vllm_settings import EngineConfig, cpu_environment, engine_args, environment


def build(config: EngineConfig, wanted: threading.Event, keep: Callable[[Any], None]) -> None:
    """Make an AsyncLLM and give it to `keep`: a thread's future would hold it until the interpreter ends.

    Blocking, for as long as the model takes to load.

    Raises:
        EngineUnavailableError: it is no longer wanted.
        UnsafeEngineError: vLLM's version or installation would mix adapters up.
        ValueError, RuntimeError, OSError: it does not come up.
    """
    with environment(model=config.model, log_level=config.log_level):
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        on_cpu = current_platform.is_cpu()
        if on_cpu:
            cpu_lora.require_plugin(os.environ.get("VLLM_PLUGINS"))
            cpu_lora.register()
            for inherited in (cpu_lora.COMPILE, native_lora.VARIABLE):
                os.environ.pop(inherited, None)
            os.environ.update(_compiled(config))
        args = engine_args(config, on_cpu=on_cpu)
        if not wanted.is_set():
            raise EngineUnavailableError("the start of the engine was called off")
        with cpu_environment(config.cpu_cores) if on_cpu else contextlib.nullcontext():
            keep(AsyncLLM.from_engine_args(args))


def _compiled(config: EngineConfig) -> dict[str, str]:
    """What tells the engine's processes of compiled code, made here if need be."""
    found = {cpu_lora.COMPILE: "1"} if config.compile else {}
    if config.cache_dir is not None:
        if library := native_lora.built(config.cache_dir):
            found[native_lora.VARIABLE] = str(library)
        found["TORCHINDUCTOR_CACHE_DIR"] = str(config.cache_dir / "inductor")
        found["VLLM_CACHE_ROOT"] = str(config.cache_dir / "vllm")
    return found


async def verify_operator(llm: Any) -> None:
    """Raise UnsafeEngineError unless the engine's workers use our LoRA operator, on a CPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for operators in await llm.collective_rpc("km_lora_operators"):
        if operators != [cpu_lora.OUR_WRAPPER]:
            raise UnsafeEngineError(
                f"the engine works with the LoRA operator {operators}, which leaks adapters into other "
                f"answers, instead of {cpu_lora.OUR_WRAPPER}. Look for 'Failed to load plugin km_server' "
                "in vLLM's log; reinstalling KM Server (pip install -e .) usually helps."
            )
