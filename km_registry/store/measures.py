"""What of the queue and of training is measured: for who runs the server, about nobody's document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from km_registry.clocks import ahead_s
from km_registry.store.store import Store, now
from km_registry.tables import JobRow, KMRow
from km_registry.types import JobState, Stage

#: The mean time of a training is over so many of the latest.
_LATEST = 100


@dataclass(frozen=True, slots=True)
class TrainingMeasures:
    """How long the oldest job that may begin waits, in seconds (0: none waits); running jobs by stage; the
    mean seconds of the latest trainings, and mean `recovered` of the KMs that answer (None: there are none);
    how many KMs there are."""

    oldest_waiting_s: float
    stages: Mapping[Stage, int]
    mean_seconds: float | None
    mean_recovered: float | None
    kms: int


def clock_ahead_s(store: Store) -> float:
    """How many seconds the database's clock is ahead of this machine's; SQLite's is the same."""
    if store.database.is_sqlite:
        return 0.0
    with store.database.reading() as session:
        # Connected first: that takes time that is none of the clock's.
        session.connection()
        return ahead_s(lambda: store.database.moment(session).timestamp())


def training(store: Store) -> TrainingMeasures:
    """What is measured now."""
    with store.database.reading() as session:
        recovered = func.avg(KMRow.metrics["recovered"].as_float())
        answering = KMRow.retired_at.is_(None)
        kms, mean = session.execute(select(func.count(), recovered).where(answering)).one()
        stages = session.execute(
            select(JobRow.stage, func.count()).where(JobRow.state == JobState.RUNNING).group_by(JobRow.stage)
        ).all()
        return TrainingMeasures(
            oldest_waiting_s=_oldest(session),
            stages={Stage(stage): count for stage, count in stages},
            mean_seconds=_mean_seconds(session),
            mean_recovered=None if mean is None else float(mean),
            kms=kms,
        )


def _oldest(session: Session) -> float:
    moment = now()
    ready = (JobRow.state == JobState.QUEUED, JobRow.not_before.is_(None) | (JobRow.not_before <= moment))
    since: datetime | None = session.scalar(
        select(JobRow.created_at).where(*ready).order_by(JobRow.created_at).limit(1)
    )
    return 0.0 if since is None else max(0.0, (moment - since).total_seconds())


def _mean_seconds(session: Session) -> float | None:
    latest = (
        select(JobRow.started_at, JobRow.finished_at)
        .where(JobRow.state == JobState.SUCCEEDED)
        .order_by(JobRow.sequence.desc())
        .limit(_LATEST)
    )
    seconds = [(end - start).total_seconds() for start, end in session.execute(latest) if start and end]
    return sum(seconds) / len(seconds) if seconds else None
