"""From claimed jobs to published KMs, on one page.

Each document goes its way: its material is prepared in a thread (preparation.py), the teacher says what it
has to say about it, it trains beside the others, one forward and backward pass for all of them (train.py),
and it is measured and published as soon as its own training ends (publication.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import structlog

from km_registry.registry import Registry
from trainer_worker.attempts import Attempts, reason_of
from trainer_worker.config import TrainerSettings
from trainer_worker.group import Group
from trainer_worker.handover import Handover
from trainer_worker.memory import Memory, free_bytes
from trainer_worker.preparation import Preparation, prepare
from trainer_worker.train import train
from trainer_worker.workshop import Workshop

_log = structlog.get_logger(__name__)


def train_kms(
    registry: Registry,
    settings: TrainerSettings,
    attempts: Attempts,
    *,
    idle_workers: Callable[[], int] = lambda: 0,
) -> None:
    """Train and publish the KM of every job that is held, and of those that wait beside them or come in the
    meantime.

    Each attempt ends on its own: published, failed with a reason in its row, or dropped because its job was
    taken away. Returns once none is held any more.
    """
    with _shared_trouble(attempts), Handover.by(settings, registry) as handover:
        shop = Workshop.open(settings, registry=registry, handover=handover)
        memory = Memory.of(shop.base.path, settings, free_bytes=free_bytes(shop.device))
        with (
            Preparation(lambda attempt: prepare(shop, attempt)) as preparation,
            closing(Group(shop, attempts, preparation, memory, idle_workers=idle_workers)) as group,
        ):
            group.model = shop.load_model()
            running = train(
                group.model,
                group.joining(),
                joining=group.joining,
                checkpoint_s=settings.checkpoint_seconds,
            )
            with closing(running):
                for ended in running:
                    group.finish(ended)


@contextmanager
def _shared_trouble(attempts: Attempts) -> Iterator[None]:
    """What goes wrong in what the documents share is one's own failure only if there is but one."""
    try:
        yield
    except Exception as error:
        held = attempts.held()
        if len(held) > 1:
            _log.exception("the group failed; each of its jobs will be trained alone")
            attempts.crash(f"training beside others failed ({reason_of(error)})")
            return
        for attempt in held:
            with attempts.ending(attempt):
                raise
