"""One fault run: users at work, a kill -9 at a seeded moment, everything up again, everything checked."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from tests.faults.checks import Tally
from tests.faults.stack import Stack
from tests.faults.world import World

VICTIMS = ("child", "redis", "worker", "gateway")
PHASES = ("upload", "training", "publication", "composition", "answering", "deletion")
#: Every victim in every phase.
ROUND = len(VICTIMS) * len(PHASES)
_MOST_KEPT = 2


class FaultRuns:
    """Fault runs on one server, whose documents go on from run to run."""

    def __init__(self, stack: Stack, *, seed: int = 0) -> None:
        self._stack = stack
        self._seed = seed
        self._world = World(stack, random.Random(seed))
        self.tally = Tally()
        stack.add_ke()

    def run(self, number: int) -> None:
        """The run of this number: victim, phase and moment follow from the seed and the number."""
        victim = VICTIMS[number % len(VICTIMS)]
        phase = PHASES[number // len(VICTIMS) % len(PHASES)]
        rng = random.Random(f"{self._seed} {number}")
        world = self._world
        document_id = world.upload()
        assert document_id, "an upload had no answer although every part was there"
        acts, longest_s = self._begin(phase, document_id, rng)
        with ThreadPoolExecutor(4) as pool:
            acting = [pool.submit(act) for act in acts]
            time.sleep(rng.uniform(0.0, longest_s))  # the seeded moment
            killed = self._stack.kill(victim)
            wait(acting)
        for one in acting:
            one.result()
        if killed:
            self.tally.kills[killed] += 1
            self.tally.phases[phase] += 1
        self._stack.recover()
        self._finish(rng)

    def _begin(
        self, phase: str, document_id: str, rng: random.Random
    ) -> tuple[Sequence[Callable[[], object]], float]:
        """Bring the phase about; what goes on when the kill comes, and within how many seconds it does."""
        world = self._world
        match phase:
            case "upload":
                return [world.upload, world.upload], 0.06
            case "training":
                world.until(document_id, "training", "published")
                return [], 0.5
            case "publication":
                world.until(document_id, "evaluation", "export", "published")
                return [], 0.12
            case "composition":
                world.until(document_id, "published")
                return [lambda: world.ask(document_id, mode="km", ke="default")], 0.05
            case "answering":
                asks = [
                    lambda: world.ask(document_id, mode="icl", stream=True),
                    lambda: world.ask(document_id, mode="icl"),
                    lambda: world.ask(document_id, mode="base"),
                ]
                return asks, 0.05
            case _:
                world.until(document_id, rng.choice(["training", "published"]), "published")
                return [lambda: world.delete(document_id)], 0.15

    def _finish(self, rng: random.Random) -> None:
        world = self._world
        world.settle()
        for document_id in rng.sample(sorted(world.kept), max(0, len(world.kept) - _MOST_KEPT)):
            world.delete(document_id)
        world.settle()
        for document_id in world.kept:
            assert world.ask(document_id, mode="km", ke="default") == 200
        self.tally.check(world)
