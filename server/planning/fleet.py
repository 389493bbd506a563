"""The fewest replicas that answer a workload in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from server.planning.curves import Curve
from server.planning.errors import PlanningError
from server.planning.profile import Profile
from server.planning.simulation import Outcome, prompt_tokens, simulate
from server.planning.workload import WITH_KM, WITH_PASSAGES, Workload

#: More are not looked for: a plan of that size wants a faster replica first.
MOST_REPLICAS = 512
_REQUESTS = 2500
_MOST_WARM_UP = 6000
#: Of the questions that come, this share is answered meanwhile, or the replicas are overrun.
_KEPT_UP = 0.95
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas for a workload, and what they were seen to do. `in_time` is whether they meet the target."""

    replicas: int
    slots: int
    outcome: Outcome
    in_time: bool


class Search:
    """Looks for a fleet. `background_replicas` of its capacity go to what nobody waits for."""

    def __init__(
        self,
        profile: Profile,
        workload: Workload,
        *,
        background_replicas: float = 0.0,
        seed: int = 0,
        progress: Progress = lambda _: None,
    ) -> None:
        self._profile, self._workload = profile, workload
        self._background = background_replicas
        self._seed, self._progress = seed, progress
        self._seen: dict[tuple[int, int], Outcome] = {}

    def in_time(self) -> Fleet:
        """The fewest replicas that meet the target; then fewer slots, while nothing is slower by a tenth.

        Raises:
            PlanningError: no number meets it, or more than 512 are needed.
        """
        target, slots = self._workload.first_token_p95_s, self._profile.replica.slots
        self._check_offered()
        roomy = min(MOST_REPLICAS, ceil(4 * self._offered()) + 2)
        least = max(self._outcome(roomy, slots).first_token_p95_s, fastest_s(self._profile, self._workload))
        if least > target and roomy < MOST_REPLICAS:
            raise PlanningError(
                f"No number of replicas brings 95 of 100 first tokens within {target:g} s: where hardly "
                f"anybody waits it takes {least:.2g} s. Allow more, shorten prompts, or take faster replicas."
            )
        return self._fleet(lambda found: found.first_token_p95_s <= target)

    def keeping_up(self) -> Fleet:
        """The fewest replicas that answer as many questions as come, however late.

        Raises:
            PlanningError: more than 512 are needed.
        """
        return self._fleet(lambda found: found.throughput >= _KEPT_UP * self._workload.questions_per_s)

    def _fleet(self, enough: Callable[[Outcome], bool]) -> Fleet:
        slots = self._profile.replica.slots
        replicas = self._fewest(lambda count: self._can(count, slots, enough))
        outcome = self._outcome(replicas, slots)
        while slots > 1 and WITH_KM & set(self._workload.mix):
            fewer = self._outcome(replicas, slots // 2)
            if not enough(fewer) or _slower(fewer, outcome):
                break
            slots, outcome = slots // 2, fewer
        return Fleet(replicas, slots, outcome, outcome.first_token_p95_s <= self._workload.first_token_p95_s)

    def _fewest(self, can: Callable[[int], bool]) -> int:
        """From a first guess in steps that grow, then by halves; to one in 16, no coarser than the model."""
        good = self._guess()
        step, bad = max(1, good // 16), 0
        if can(good):
            while good > 1 and can(max(1, good - step)):
                good, step = max(1, good - step), 2 * step
            bad = max(0, good - step)
        else:
            while not can(good):
                if good == MOST_REPLICAS:
                    raise PlanningError(_too_many(self._workload))
                demanded = ceil(good * self._outcome(good, self._profile.replica.slots).utilisation)
                bad, good, step = good, min(MOST_REPLICAS, max(good + step, demanded)), 2 * step
        while good - bad > max(1, good // 16):
            middle = (good + bad) // 2
            good, bad = (middle, bad) if can(middle) else (good, middle)
        return good

    def _guess(self) -> int:
        """As many as would be busy all the time, by the work that was seen where most of them are idle."""
        self._check_offered()
        replicas = ceil(self._offered())
        seen = self._seen or {(replicas, 0): self._outcome(replicas, self._profile.replica.slots)}
        (replicas, _), outcome = max(seen.items(), key=lambda one: one[0])
        return max(1, ceil(replicas * outcome.utilisation + self._background))

    def _offered(self) -> float:
        """Replicas that are busy all the time where nothing is cached."""
        return self._workload.questions_per_s * work_s(self._profile, self._workload) + self._background

    def _check_offered(self) -> None:
        if self._offered() > MOST_REPLICAS:
            raise PlanningError(_too_many(self._workload))

    def _can(self, replicas: int, slots: int, enough: Callable[[Outcome], bool]) -> bool:
        outcome = self._outcome(replicas, slots)
        return outcome.utilisation + self._background / replicas <= 1 and enough(outcome)

    def _outcome(self, replicas: int, slots: int) -> Outcome:
        if (replicas, slots) not in self._seen:
            self._progress(f"{', '.join(self._workload.mix)}: {replicas} replicas of {slots} slots")
            self._seen[replicas, slots] = simulate(
                self._profile.with_slots(slots),
                self._workload,
                replicas,
                requests=_REQUESTS,
                warm_up=min(_MOST_WARM_UP, _REQUESTS // 2 + 4 * replicas * slots),
                seed=self._seed,
            )
        return self._seen[replicas, slots]


def _slower(one: Outcome, other: Outcome) -> bool:
    """By more than a tenth."""
    return (
        one.first_token_p95_s > 1.1 * other.first_token_p95_s or one.answer_mean_s > 1.1 * other.answer_mean_s
    )


def work_s(profile: Profile, workload: Workload) -> float:
    """Seconds of a replica that a question takes in full batches, on average, with nothing cached."""
    replica, mix = profile.replica, workload.mix
    total = 0.0
    for mode, share in mix.items():
        tokens = prompt_tokens(profile, workload, mode)
        context = (tokens + workload.answer_tokens / 2) * replica.context_ms_per_1000_tokens / 1e6
        step = 1 / max(replica.tokens_per_s.values()) + context
        total += share * (_prompt_s(profile, tokens) + workload.answer_tokens * step)
    return total / sum(mix.values())


def fastest_s(profile: Profile, workload: Workload) -> float:
    """When a first token comes where nobody waits and no prompt is cached; the fastest mode's."""
    return min(_first_token_s(profile, workload, mode) for mode in workload.mix)


def _first_token_s(profile: Profile, workload: Workload, mode: str) -> float:
    search_ms = profile.retrieval.search_ms if mode in WITH_PASSAGES else 0.0
    waited = (profile.replica.overhead_ms + search_ms) / 1000
    return waited + _prompt_s(profile, prompt_tokens(profile, workload, mode))


def _prompt_s(profile: Profile, tokens: int) -> float:
    speeds = profile.replica.prompt_tokens_per_s
    return tokens / Curve(speeds)(tokens) if speeds else 0.0


def _too_many(workload: Workload) -> str:
    return (
        f"More than {MOST_REPLICAS} replicas are needed for {workload.questions_per_s:g} questions a second "
        f"({', '.join(workload.mix)}). Plan for fewer, or take a faster replica."
    )
