"""Which device and number format a training uses here."""

from __future__ import annotations

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """CUDA in bfloat16 where there is one; else the CPU, in bfloat16 only where it computes in it.

    Without such instructions a CPU multiplies bfloat16 matrices about nine times slower than float32.
    """
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.device("cpu"), torch.bfloat16 if native else torch.float32


def keep_freed_memory() -> None:
    """Have glibc keep freed tensors for the next step, instead of unmapping and faulting every one anew."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
