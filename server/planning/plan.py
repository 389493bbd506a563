"""A plan: replicas, slots, memory, trainers and cost, beside those of answering without KMs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import ceil

from server.planning.errors import PlanningError
from server.planning.fleet import Fleet, Progress, Search, fastest_s
from server.planning.profile import Profile
from server.planning.queueing import sojourns
from server.planning.workload import WITH_KM, Mode, Workload

_DAY_S = 86400
_JOBS = 4000
_MOST_TRAINERS = 10_000


@dataclass(frozen=True, slots=True)
class Way:
    """One way to answer all the questions. Without a `fleet` it cannot, and `why` says why."""

    name: str
    fleet: Fleet | None
    cost_per_million: float | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Trainers:
    """Trainers that keep up with the uploads; `trained_p95_s` from upload to KM."""

    count: int
    utilisation: float
    trained_p95_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What the workload takes. `ways` are: as asked for, then the document in context, then retrieval."""

    ways: tuple[Way, ...]
    trainers: Trainers
    replica_memory_gb: float
    disk_gb: float
    best_hit_rate: float | None
    trainer_cost_per_million: float


def planned(
    profile: Profile, workload: Workload, *, seed: int = 0, progress: Progress = lambda _: None
) -> Plan:
    """The plan.

    Raises:
        PlanningError: no number of replicas or trainers does it.
    """
    with_kms = bool(WITH_KM & set(workload.mix))
    trainers = _trainers(profile, workload, seed) if with_kms else Trainers(0, 0.0, 0.0)
    training = _per_million(trainers.count * profile.prices.trainer_hour, workload)
    fleet = Search(
        profile,
        workload,
        background_replicas=_synthesis(profile, workload) if with_kms else 0.0,
        seed=seed,
        progress=progress,
    ).in_time()
    serving = _per_million(fleet.replicas * profile.prices.replica_hour, workload)
    asked = Way("+".join(workload.mix), fleet, serving + training)
    others = [_other(profile, workload, mode, seed, progress) for mode in ("icl", "rag")]
    kms = min(profile.replica.places, workload.documents) + fleet.slots if with_kms else 0
    return Plan(
        ways=(asked, *others),
        trainers=trainers,
        replica_memory_gb=profile.replica.memory_gb + kms * profile.km.memory_mb / 1000,
        disk_gb=workload.documents * profile.km.disk_mb / 1000 if with_kms else 0.0,
        best_hit_rate=workload.best_hit_rate(fleet.replicas * fleet.slots) if with_kms else None,
        trainer_cost_per_million=training,
    )


def _other(profile: Profile, workload: Workload, mode: Mode, seed: int, progress: Progress) -> Way:
    """The same questions, all in one mode that needs no KM."""
    alone = workload.model_copy(update={"mix": {mode: 1.0}})
    try:
        search = Search(profile, alone, seed=seed, progress=progress)
        reachable = fastest_s(profile, alone) <= workload.first_token_p95_s
        fleet = search.in_time() if reachable else search.keeping_up()
    except PlanningError as error:
        return Way(mode, None, None, str(error))
    return Way(mode, fleet, _per_million(fleet.replicas * profile.prices.replica_hour, workload))


def _per_million(hour: float, workload: Workload) -> float:
    """What a million answers cost of what an hour costs."""
    return hour / (3600 * workload.questions_per_s / 1e6)


def _synthesis(profile: Profile, workload: Workload) -> float:
    """Replicas that write about uploads all the time."""
    uploaded = workload.uploads_per_day * workload.document_tokens / _DAY_S
    written = uploaded * profile.training.synthesis_tokens_per_token
    return written / max(profile.replica.tokens_per_s.values())


def _trainers(profile: Profile, workload: Workload, seed: int) -> Trainers:
    service_s = profile.training.seconds_per_token * workload.document_tokens
    per_s = workload.uploads_per_day / _DAY_S
    if service_s > workload.trained_p95_s:
        raise PlanningError(
            f"A KM of {workload.document_tokens} tokens is trained in {service_s:.0f} s, which is more than "
            f"the {workload.trained_p95_s:g} s that it may take. Allow more, or take a faster trainer."
        )
    if not per_s or not service_s:
        return Trainers(0, 0.0, 0.0)

    def lasts(_: random.Random) -> float:
        return service_s

    for count in range(ceil(per_s * service_s), _MOST_TRAINERS):
        found = sorted(sojourns(per_s, lasts, count, jobs=_JOBS, seed=seed))
        p95 = found[ceil(0.95 * _JOBS) - 1]
        if p95 <= workload.trained_p95_s and per_s * service_s < count:
            return Trainers(count, per_s * service_s / count, p95)
    raise PlanningError(f"More than {_MOST_TRAINERS} trainers are needed. Plan for fewer uploads a day.")
