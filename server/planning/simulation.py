"""A workload played to replicas: discrete events, seeded, with the router and the residency that serve."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from server.planning.clock import Clock
from server.planning.errors import PlanningError
from server.planning.profile import Profile
from server.planning.replica import Replica
from server.planning.request import Request
from server.planning.routes import Routing, routes_of
from server.planning.workload import WITH_KM, WITH_PASSAGES, Workload

#: A system that is overrun never answers all: so many times the requests asked for, and it ends.
_AT_MOST = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured, after the warm-up. Times in seconds.

    `hit_rate` is the share of requests to KMs that found theirs in a slot, `in_memory_rate` of those that
    found it there or in memory; None where no KM was asked. `utilisation` is the work done over what the
    replicas could do at best. Requests without a first token at the end count as infinitely late.
    """

    requests: int
    throughput: float
    hit_rate: float | None
    in_memory_rate: float | None
    first_token_p50_s: float
    first_token_p95_s: float
    answer_mean_s: float
    in_flight: float
    utilisation: float
    loads: int
    swaps: int


def simulate(
    profile: Profile,
    workload: Workload,
    replicas: int,
    *,
    clients: int | None = None,
    requests: int = 6000,
    warm_up: int | None = None,
    routing: Routing = "affinity",
    seed: int = 0,
) -> Outcome:
    """Questions by the workload, put to so many replicas.

    Args:
        profile: how fast a replica is.
        workload: what is asked. Its targets are not looked at.
        replicas: how many there are.
        clients: ask in a closed loop, each again as soon as it has its answer; without it questions come
            by themselves, `questions_per_s` of them, at random.
        requests: how many are measured.
        warm_up: how many come before that; two thirds as many without it.
        routing: how replicas are chosen.
        seed: of all that is drawn. The same one asks the same questions whatever there are of replicas.

    Raises:
        PlanningError: no replica, client or request, or a document that does not fit into the context.
    """
    if replicas < 1 or requests < 1 or (clients is not None and clients < 1):
        raise PlanningError(
            f"{replicas} replicas, {requests} requests, {clients} clients: give at least one of each"
        )
    return _Simulation(profile, workload, replicas, routing, seed).run(
        clients, requests, requests * 2 // 3 if warm_up is None else warm_up
    )


def prompt_tokens(profile: Profile, workload: Workload, mode: str) -> int:
    """How long the prompt of a mode is.

    Raises:
        PlanningError: too long for the context.
    """
    tokens = workload.question_tokens
    if mode in WITH_PASSAGES:
        tokens += profile.retrieval.passages * profile.retrieval.passage_tokens
    if mode == "icl":
        tokens += workload.document_tokens
    if tokens + workload.answer_tokens > profile.replica.context_tokens:
        raise PlanningError(
            f"A prompt of {tokens} tokens (mode {mode}) and an answer of {workload.answer_tokens} "
            f"are more than the context of {profile.replica.context_tokens}. Shorten them, or raise the "
            "profile's replica.context_tokens."
        )
    return tokens


class _Simulation:
    def __init__(
        self, profile: Profile, workload: Workload, replicas: int, routing: Routing, seed: int
    ) -> None:
        self._profile, self._workload = profile, workload
        self._clock = Clock()
        self._replicas = {
            f"replica-{number}": Replica(self._clock, profile.replica, workload.document_tokens, self._ended)
            for number in range(replicas)
        }
        told = profile.replica.told_every_s is not None
        self._gateways = [
            routes_of(routing, slots=profile.replica.slots, told=told, seed=seed + number)
            for number in range(workload.gateways)
        ]
        # One stream for each: replicas and routing do not change what is asked.
        self._arrivals, self._documents, self._modes, self._lengths, self._doors = (
            random.Random(f"{seed} {what}")  # noqa: S311  reproducible, not a secret
            for what in ("arrivals", "documents", "modes", "lengths", "doors")
        )
        self._popularity = workload.cumulative_popularity
        self._prompts = {mode: prompt_tokens(profile, workload, mode) for mode in workload.mix}
        self._waiting: deque[tuple[int, Request]] = deque()
        self._told: dict[str, Collection[str]] = {}
        self._told_at = -math.inf
        self._asked: list[Request] = []
        self._ends: list[tuple[float, float]] = []

    # --- what happens ----------------------------------------------------------------------------------

    def run(self, clients: int | None, requests: int, warm_up: int) -> Outcome:
        """Until all requests that are measured have their first tokens."""
        self._clients = clients
        for _ in range(clients or 1):
            self._ask()
        self._step_until(warm_up)
        began, before = self._clock.now, self._books()
        done = len(self._ends)
        self._step_until(warm_up + requests)
        measured = self._asked[warm_up : warm_up + requests]
        late = deque(measured)
        ended, after, answered = self._clock.now, self._books(), len(self._ends) - done
        while late and len(self._asked) < _AT_MOST * (warm_up + requests):
            if math.isinf(late[0].first_token):
                self._clock.step()
            else:
                late.popleft()
        return self._outcome(measured, answered / (ended - began), ended - began, before, after, done)

    def _step_until(self, count: int) -> None:
        """Until so many have been asked, or in a closed loop answered."""
        seen = self._asked if self._clients is None else self._ends
        while len(seen) < count:
            self._clock.step()

    def _ask(self, _nothing: None = None) -> None:
        request = self._drawn()
        self._asked.append(request)
        delay = self._profile.replica.overhead_ms / 1000
        if request.mode in WITH_PASSAGES:
            delay += self._profile.retrieval.search_ms / 1000
        gateway = self._doors.randrange(len(self._gateways))
        self._clock.after(delay, self._arrive, (gateway, request))
        if self._clients is None:
            self._clock.after(self._arrivals.expovariate(self._workload.questions_per_s), self._ask)

    def _drawn(self) -> Request:
        document = bisect(self._popularity, self._documents.random(), hi=self._workload.documents - 1)
        mix = self._workload.mix
        (mode,) = self._modes.choices(list(mix), list(mix.values()))
        tokens: float = self._workload.answer_tokens
        if self._workload.answer_lengths == "exponential":
            tokens = self._lengths.expovariate(1 / tokens)
        adapter = document if mode in WITH_KM else None
        # A prompt brings the first token.
        steps = max(0.0, tokens - 1) if self._profile.replica.prompt_tokens_per_s else tokens
        prompt = self._prompts[mode]
        return Request(len(self._asked), mode, document, adapter, prompt, tokens, steps, self._clock.now)

    def _arrive(self, arriving: tuple[int, Request]) -> None:
        self._waiting.append(arriving)
        self._send()

    def _send(self) -> None:
        """Those that wait before the replicas, as far as there is room, in order."""
        most = self._profile.replica.ongoing or math.inf
        while self._waiting:
            loads = {name: one.load for name, one in self._replicas.items()}
            if min(loads.values()) >= most:
                return
            gateway, request = self._waiting.popleft()
            routes, key = self._gateways[gateway], self._key(request)
            ranked = routes.rank(key, loads, self._resident())
            request.replica = next(one for one in ranked if loads[one] < most)
            routes.sent(key, request.replica)
            self._replicas[request.replica].take(request)

    def _ended(self, request: Request) -> None:
        self._ends.append((request.came, self._clock.now))
        if self._clients is not None:
            self._ask()
        self._send()

    @staticmethod
    def _key(request: Request) -> str | None:
        """What is looked for on replicas: its adapter, or its document where prompts are kept."""
        if request.adapter is not None:
            return f"km_{request.adapter}"
        return f"doc_{request.document}" if request.mode == "icl" else None

    def _resident(self) -> Mapping[str, Collection[str]]:
        every = self._profile.replica.told_every_s
        if every is not None and self._clock.now >= self._told_at + every:
            self._told_at = self._clock.now
            self._told = {
                name: {f"km_{one}" for one in replica.residency.in_slots}
                | {f"doc_{one}" for one in replica.cached}
                for name, replica in self._replicas.items()
            }
        return self._told

    # --- what is measured ------------------------------------------------------------------------------

    def _books(self) -> dict[str, float]:
        """Sums over all replicas, of all that happened so far."""
        replicas = self._replicas.values()
        counts = [replica.residency.counts for replica in replicas]
        names = ("found_in_slot", "found_in_memory", "found_on_disk", "loads", "swaps")
        sums = {name: float(sum(getattr(one, name) for one in counts)) for name in names}
        return sums | {"work_s": sum(replica.work_s for replica in replicas)}

    def _outcome(
        self,
        measured: list[Request],
        throughput: float,
        seconds: float,
        before: dict[str, float],
        after: dict[str, float],
        done: int,
    ) -> Outcome:
        happened = {name: after[name] - before[name] for name in after}
        found = [happened[f"found_{place}"] for place in ("in_slot", "in_memory", "on_disk")]
        firsts = sorted(request.first_token - request.came for request in measured)
        lasted = [end - came for came, end in self._ends[done:]]
        mean = sum(lasted) / len(lasted) if lasted else math.inf
        return Outcome(
            requests=len(measured),
            throughput=throughput,
            hit_rate=found[0] / sum(found) if sum(found) else None,
            in_memory_rate=(found[0] + found[1]) / sum(found) if sum(found) else None,
            first_token_p50_s=_percentile(firsts, 50),
            first_token_p95_s=_percentile(firsts, 95),
            answer_mean_s=mean,
            in_flight=mean * throughput,
            utilisation=happened["work_s"] / seconds / len(self._replicas),
            loads=int(happened["loads"]),
            swaps=int(happened["swaps"]),
        )


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)]
