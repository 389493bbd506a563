"""A disk that is full from a chosen write on, for a child process: see quota.c."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from pathlib import Path

_LAYOUT = struct.Struct("qq")


class Disk:
    """The child's side: how much was written, and from which write on there is no room."""

    def __init__(self) -> None:
        with Path(os.environ["KM_QUOTA_FILE"]).open("r+b") as file:
            self._told = mmap.mmap(file.fileno(), _LAYOUT.size)

    @property
    def writes(self) -> int:
        """Calls that wrote, since the count was set to zero."""
        return int(_LAYOUT.unpack_from(self._told)[0])

    def full_at(self, call: int) -> None:
        """Count anew; from this call on the disk is full."""
        _LAYOUT.pack_into(self._told, 0, 0, call)

    def room(self) -> None:
        """There is room again."""
        _LAYOUT.pack_into(self._told, 0, self.writes, 0)


def run_on_small_disk(module: str, folder: Path, *arguments: str, timeout_s: float) -> str:
    """Run a module of the tests in a process whose writes below `folder`/data are counted; its output."""
    library, counters = folder / "quota.so", folder / "quota"
    source = Path(__file__).with_name("quota.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    counters.write_bytes(_LAYOUT.pack(0, 0))
    data = folder / "data"
    environment = {
        "LD_PRELOAD": str(library),
        "KM_QUOTA_DIR": str(data.resolve()),
        "KM_QUOTA_FILE": str(counters),
    }
    done = subprocess.run(
        [sys.executable, "-m", module, str(data), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout
