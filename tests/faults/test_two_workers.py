"""Two workers on one queue, one of which is killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.faults.checks import Tally
from tests.faults.stack import running
from tests.faults.world import World


def test_each_km_is_published_once(tmp_path: Path) -> None:
    with running(tmp_path, KM_TRAIN_CONCURRENCY="1") as stack:
        stack.until(lambda: stack.victim("worker"))
        worker = stack.victim("worker")
        assert worker is not None
        second = subprocess.Popen([sys.executable, "-m", "trainer_worker"], env=os.environ | worker.environ())
        try:
            world, tally = World(stack, random.Random(0)), Tally()
            documents = [world.upload() for _ in range(8)]
            for document_id in documents[:3]:
                assert document_id
                world.until(document_id, "published")
            worker.kill()
            world.settle()
            tally.check(world)
            assert tally.problems == []
        finally:
            second.terminate()
            second.wait(30)
