"""Children that never outlive their parent."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil

PARENT = """
import signal, subprocess, sys
from km_registry.processes import dying_with_me
child = subprocess.Popen(["sleep", "600"], preexec_fn=dying_with_me(signal.Signals(int(sys.argv[1]))))
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(int(signal.SIGTERM))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()

    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone == [child] or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_whose_parent_has_gone_ends_itself() -> None:
    code = "from km_registry.processes import die_with_parent; die_with_parent(1 << 30); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == -signal.SIGKILL
    assert done.stdout == ""
