"""One simulated engine replica. Which adapter is where is decided by the code that does so in an engine."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from server.engine.residency import Decision, Move, Residency
from server.planning.clock import Clock
from server.planning.curves import Curve
from server.planning.decoding import Decoding
from server.planning.profile import ReplicaProfile
from server.planning.request import Request


class Replica:
    """It computes one thing at a time: a step of the batch, or a prompt, or, where these stall it, a move.

    Prompts and moves go before steps, in the order in which they come.
    """

    def __init__(
        self, clock: Clock, profile: ReplicaProfile, document_tokens: int, ended: Callable[[Request], None]
    ) -> None:
        """`ended` is called with every request that has its answer."""
        self._clock, self._profile, self._ended = clock, profile, ended
        self.residency = Residency(slots=profile.slots, places=profile.places)
        #: Requests here, waiting or running.
        self.load = 0
        #: Seconds that its requests would have taken in full batches.
        self.work_s = 0.0
        self._speed = Curve(profile.tokens_per_s)
        self._prompts = Curve(profile.prompt_tokens_per_s) if profile.prompt_tokens_per_s else None
        self._context_s = profile.context_ms_per_1000_tokens / 1e6
        self._decoding = Decoding(clock, self._step_s, self._answered)
        self._requests: dict[int, Request] = {}
        self._running = 0
        #: Admitted, beyond what is computed at a time.
        self._queue: deque[Request] = deque()
        self._before_steps = 0
        self._free_at = self._moved_at = 0.0
        #: Documents whose prompts are kept, the latest last.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._most_cached = profile.cache_tokens // document_tokens
        self._document_tokens = document_tokens

    def take(self, request: Request) -> None:
        """A request has come."""
        self.load += 1
        if request.adapter is None:
            self._admit(request)
            return
        self._requests[request.number] = request
        self._follow(self.residency.ask(request.number, request.adapter))

    def _follow(self, decision: Decision) -> None:
        for move in decision.moves:
            self._move(move)
        for number in decision.admitted:
            self._admit(self._requests[number])

    def _move(self, move: Move) -> None:
        seconds = (self._profile.load_ms * move.load + self._profile.swap_ms * move.place) / 1000
        if self._profile.moves_stall:
            self._alone(seconds, self._moved, move)
            return
        # One after the other, beside the computing.
        self._moved_at = max(self._moved_at, self._clock.now) + seconds
        self._clock.after(self._moved_at - self._clock.now, self._moved, move)

    def _moved(self, move: Move) -> None:
        self._follow(self.residency.moved(move))

    def _admit(self, request: Request) -> None:
        if self._running == self._profile.running:
            self._queue.append(request)
        else:
            self._run(request)

    def _run(self, request: Request) -> None:
        self._running += 1
        seconds = self._prompt_s(request)
        if seconds:
            self._alone(seconds, self._answer, request)
        else:
            self._answer(request)

    def _prompt_s(self, request: Request) -> float:
        """How long its prompt takes. With the document in it, less if that is cached."""
        tokens = request.prompt_tokens
        if self._prompts is None:
            return 0.0
        if request.mode == "icl":
            if request.document in self._cached:
                tokens -= self._document_tokens
            self._cache(request.document)
        return tokens / self._prompts(tokens)

    def _cache(self, document: int) -> None:
        self._cached[document] = None
        self._cached.move_to_end(document)
        if len(self._cached) > self._most_cached:
            self._cached.popitem(last=False)

    @property
    def cached(self) -> frozenset[int]:
        """Documents whose prompts it keeps."""
        return frozenset(self._cached)

    def _answer(self, request: Request) -> None:
        request.first_token = self._clock.now
        self.work_s += request.steps * (1 / self._speed.most + request.context_tokens * self._context_s)
        self._decoding.add(request)

    def _answered(self, request: Request) -> None:
        self.load -= 1
        self._running -= 1
        if request.adapter is not None:
            del self._requests[request.number]
            self._follow(self.residency.done(request.number))
        if self._queue and self._running < self._profile.running:
            self._run(self._queue.popleft())
        self._ended(request)

    def _alone(self, seconds: float, then: Callable[..., None], what: Request | Move) -> None:
        """Compute nothing else for so long, once what came before is done."""
        self.work_s += seconds
        self._before_steps += 1
        if self._before_steps == 1:
            self._decoding.pause()
        self._free_at = max(self._free_at, self._clock.now) + seconds
        self._clock.after(self._free_at - self._clock.now, self._was_alone, (then, what))

    def _was_alone(self, done: tuple[Callable[..., None], Request | Move]) -> None:
        self._before_steps -= 1
        if self._before_steps == 0:
            self._decoding.resume()
        then, what = done
        then(what)

    def _step_s(self, answers: int, context_tokens: float) -> float:
        return answers / self._speed(answers) + context_tokens * self._context_s
