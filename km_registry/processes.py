"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
# Loaded before any fork: a child between fork and exec must not run the dynamic loader.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(parent_pid: int, sig: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process `sig` when the thread that started it ends, however it ends.

    Call it first thing in a child, with the parent's pid. The setting survives exec, not fork. Does
    nothing where the kernel is not Linux.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    # The parent may have gone before the request was in place.
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), sig)


def dying_with_me(sig: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A `preexec_fn` for children of this process.

    Start such children from a thread that lives as long as they should: the kernel watches the thread.
    """
    parent_pid = os.getpid()
    return lambda: die_with_parent(parent_pid, sig)
