"""What the RQ worker of the queue's contract tests executes."""

from __future__ import annotations

import os
import signal

from redis import Redis


def report_and_block(job_id: str) -> None:
    """Say that the job runs, then never end."""
    Redis(unix_socket_path=os.environ["TEST_REDIS_SOCKET"]).rpush("started", job_id)
    signal.pause()


def report(job_id: str) -> None:
    """Say that the job runs, then end."""
    Redis(unix_socket_path=os.environ["TEST_REDIS_SOCKET"]).rpush("started", job_id)


def die(job_id: str) -> None:
    """Say that the job runs, then vanish as under the out-of-memory killer."""
    report(job_id)
    os.kill(os.getpid(), signal.SIGKILL)
