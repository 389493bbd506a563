"""What vLLM must be told, and its environment, derived from the machine and the model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.engine.cpu_lora import WorkerProbe

#: Ranks that vLLM has kernels for.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: The linear layers of Llama-like models, under the names of checkpoints and of vLLM's packed layers.
LORA_MODULES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
)

#: What vLLM holds answers to JSON schemas with. Pinned: vLLM keeps the first one that it happens to choose.
SCHEMA_BACKEND = "xgrammar"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the engine is to run. Lengths in tokens.

    `max_lora_rank` is rounded up to a rank vLLM knows; slots are padded to it, so keep it tight.
    `max_model_len` is capped by the model's context. `dtype` "auto" is bfloat16 where the CPU computes it,
    else float32. `compile` has the model compiled on a CPU too, for minutes of start. `cpu_cores` like
    "0-3,8" (default: every core this process may use).
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
    #: For compiled code, of the LoRA operator and of the model; without one LoRA runs in torch.
    cache_dir: Path | None = None
    compile: bool = False
    lora_modules: tuple[str, ...] = LORA_MODULES
    log_level: str = "WARNING"


def engine_args(config: EngineConfig, *, on_cpu: bool) -> Any:
    """vLLM's arguments. Inside `environment`.

    Raises:
        OSError: no such model.
    """
    from vllm.config import StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    max_model_len = min(config.max_model_len, context_length(config.model))
    return AsyncEngineArgs(
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
        # Compact: a small model that may write white space between fields writes nothing else.
        structured_outputs_config=StructuredOutputsConfig(
            backend=SCHEMA_BACKEND, disable_any_whitespace=True
        ),
        worker_extension_cls=f"{WorkerProbe.__module__}.{WorkerProbe.__qualname__}",
        disable_log_stats=True,
        **executor(on_cpu=on_cpu),
    )


def allowed_rank(rank: int) -> int:
    """The smallest rank that vLLM allows and that is not below the given one.

    Raises:
        ValueError: above the largest.
    """
    for allowed in _RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(
        f"max_lora_rank {rank} is above {_RANKS[-1]}, the largest that vLLM supports: train smaller adapters"
    )


def resolve_dtype(setting: str, *, on_cpu: bool) -> str:
    """vLLM's dtype for a setting.

    "auto" on a CPU is bfloat16 where it is computed natively, else float32, up to 9 times faster there.
    """
    if setting != "auto" or not on_cpu:
        return setting
    import torch

    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if native else "float32"


def context_length(model: Path | str) -> int:
    """The model's context in tokens, from its configuration.

    Raises:
        OSError: no such model.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model)).get_text_config()
    return int(config.max_position_embeddings)


def usable_cores() -> set[int]:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


@contextmanager
def environment(*, model: Path | str, log_level: str) -> Iterator[None]:
    """The environment for importing and starting vLLM; what it had been comes back afterwards.

    vLLM sets more of its own (LD_PRELOAD, thread counts), meant for its children and wrong for other ones.
    """
    settings = {
        "VLLM_LOGGING_LEVEL": log_level,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }
    if sys.platform == "linux":
        settings["GLOO_SOCKET_IFNAME"] = "lo"
    if Path(model).is_dir():
        settings["HF_HUB_OFFLINE"] = "1"
    before = dict(os.environ)
    try:
        os.environ.update(settings)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def parse_cores(text: str) -> set[int]:
    """The cores in a list like "0-2,5".

    Raises:
        ValueError: not such a list.
    """
    cores: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            cores |= set(range(int(first), int(last or first) + 1))
    except ValueError as error:
        raise ValueError(f"cpu_cores {text!r} is not a list of cores like '0-3,8'") from error
    return cores


@contextmanager
def cpu_environment(cores: str | None) -> Iterator[None]:
    """Inside `environment`, around the start of the engine's process: it computes on the given cores.

    By default these are all that this process may use. An operator's OMP_NUM_THREADS wins.
    """
    usable = usable_cores()
    chosen = parse_cores(cores) if cores else usable
    if not chosen <= usable:
        raise ValueError(f"cpu_cores {cores!r} names cores that this process may not use: {sorted(usable)}")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(chosen)))
    if chosen == usable or not hasattr(os, "sched_setaffinity"):
        yield
        return
    # A child inherits the affinity of the thread that starts it, and on Linux this call is for one thread.
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def executor(*, on_cpu: bool) -> dict[str, Any]:
    """On a CPU the model runs in the engine core's own process.

    vLLM's default is one process more: 12 s at start, 700 MB, and a spinning wait on the cores that compute.
    """
    if not on_cpu:
        return {}
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return {"distributed_executor_backend": UniProcExecutor}


def cpu_scheduling() -> dict[str, Any]:
    """What vLLM's scheduler must be told on a CPU.

    A prompt that is cut over several steps, with a seed, makes vLLM rewind its generator, which PyTorch's CPU
    generator cannot: one such request ends the engine. So prompts are not cut. Short blocks let questions of
    a few dozen tokens share cached prefixes.
    """
    return {"enable_chunked_prefill": False, "block_size": 32}
