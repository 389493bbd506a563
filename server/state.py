"""The parts of a running server, made once and handed to every route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from limits.storage import Storage
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from km_registry.base_model import BaseModel
from km_registry.events import MemoryNotifier, follow
from km_registry.jobs import JobQueue
from km_registry.limits import recipe_limits
from km_registry.recipe import RecipeLimits
from km_registry.registry import Registry
from km_registry.tracing import Tracing
from km_registry.types import KE, KM, Event
from server.adapters import Adapters
from server.answering import Answerer
from server.asked_notes import AskedNotes
from server.chatting import Chatter
from server.clocks import Clocks
from server.completing import Completer
from server.composed_elsewhere import ComposedElsewhere
from server.composites import Composites
from server.config import ServerSettings
from server.deletion import Deletions
from server.engine.base import Engine
from server.engine.guarded import GuardedEngine
from server.engine_keeper import EngineKeeper
from server.fleet import Fleet
from server.generating import Generating
from server.in_flight import InFlight
from server.intake.intake import Intake
from server.ke_keeper import KEKeeper
from server.kes import KEs
from server.kms import KMs
from server.letting_go import LettingGo
from server.limiting import Limiter
from server.metrics import Metrics
from server.model_names import Models
from server.prefetching import Prefetching
from server.removing import Removing
from server.replacing import Replacements
from server.retrieval.base import Embedder
from server.retrieval.retriever import RetrievalConfig, Retriever
from server.revocations import Revocations
from server.tokenizer import Tokenizer


@dataclass(slots=True, kw_only=True)
class AppState:
    """Everything that routes need. The first eight parts are given; the others are made of them.

    `load_embedder` is called once, in a thread, when retrieval is started or first needed; without one
    retrieval is off.

    `clock_redis` is asked for the time; a private Redis, on this machine, need not be.

    `limit_storage` counts what keys and users ask for; without one this server counts for itself.

    `redis` is where events are announced; the MemoryNotifier that the registry was opened with will do.
    Whoever stops the server sets `closing` first, so that event streams end and nothing waits for them.
    """

    registry: Registry
    queue: JobQueue
    engine: Engine
    tokenizer: Tokenizer
    redis: Redis | MemoryNotifier
    settings: ServerSettings
    base_model: BaseModel
    load_embedder: Callable[[], Embedder] | None = None
    limit_storage: Storage | None = None
    clock_redis: SyncRedis | None = None
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = field(default_factory=Tracing)
    in_flight: InFlight = field(default_factory=InFlight)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    clocks: Clocks = field(init=False)
    fleet: Fleet = field(init=False)
    letting_go: LettingGo = field(init=False)
    guarded: GuardedEngine = field(init=False)
    engine_keeper: EngineKeeper = field(init=False)
    intake: Intake = field(init=False)
    kes: KEs = field(init=False)
    composites: Adapters = field(init=False)
    ke_keeper: KEKeeper = field(init=False)
    prefetching: Prefetching = field(init=False)
    revocations: Revocations = field(init=False)
    limiter: Limiter = field(init=False)
    retriever: Retriever = field(init=False)
    answerer: Answerer = field(init=False)
    models: Models = field(init=False)
    completer: Completer = field(init=False)
    chatter: Chatter = field(init=False)
    replacements: Replacements = field(init=False)
    deletions: Deletions = field(init=False)
    removing: Removing = field(init=False)
    recipe_limits: RecipeLimits = field(init=False)

    def __post_init__(self) -> None:
        self.revocations = Revocations(self.registry)
        self.limiter = Limiter(self.settings, self.limit_storage)
        kms = KMs(self.registry, self.base_model)
        self.clocks = Clocks(self.registry, self.clock_redis)
        self.fleet = Fleet(
            self.registry.gateways,
            engine=self.settings.engine,
            base_fingerprint=self.base_model.fingerprint,
        )
        # What answers; what evicts and asks how it is goes to the engine itself.
        self.guarded = GuardedEngine(
            self.engine,
            max_requests=self.settings.max_requests,
            max_requests_per_user=self.settings.max_requests_per_user,
            timeout_s=self.settings.request_timeout_s,
            refuse=self.fleet.fence.check,
        )
        generating = Generating(
            self.guarded,
            self.metrics,
            self.revocations,
            self.limiter,
            AskedNotes(self.registry),
            most=min(self.settings.max_requests, self.settings.max_requests_per_user),
            closing=self.closing,
        )
        self.engine_keeper = EngineKeeper(self.engine, max_restarts=self.settings.engine_restarts)
        self.intake = Intake(self.settings.intake_limits)
        self.kes = KEs(self.registry.kes, self.base_model, self.settings.auto_policy)
        self.composites = self._adapters()
        self.retriever = Retriever(
            self.registry,
            self.load_embedder,
            lambda text: len(self.tokenizer.encode(text, add_special_tokens=False)),
            # The base model's files hold its tokenizer, which says where passages end.
            self.base_model.fingerprint,
            RetrievalConfig(
                self.settings.effective_passage_tokens,
                cache_bytes=self.settings.passage_cache_mb * 2**20,
                patience_s=self.settings.retrieval_patience_s,
            ),
        )
        self.letting_go = LettingGo(
            self.registry, self.fleet, self.in_flight, self.composites, self.retriever
        )
        self.ke_keeper = KEKeeper(self.registry, self.base_model, self.kes, self.letting_go, self.fleet)
        self.prefetching = Prefetching(
            self.registry, kms, self.kes, self.composites, self.engine, self.in_flight, self.settings
        )
        self.answerer = Answerer(
            self.registry,
            kms,
            self.kes,
            self.composites,
            self.guarded,
            generating,
            self.tokenizer,
            self.settings,
            self.in_flight,
            self.retriever,
        )
        self.models = Models(self.registry, kms, self.kes, self.composites, self.in_flight)
        self.completer = Completer(self.models, generating, self.engine, self.tokenizer)
        self.chatter = Chatter(self.models, generating, self.engine, self.tokenizer, self.settings)
        self.replacements = Replacements(
            self.registry, self.queue, self.composites, self.letting_go, self.fleet
        )
        self.deletions = Deletions(
            self.registry, self.queue, self.replacements, self.retriever, self.letting_go, self.fleet
        )
        self.removing = Removing(self.registry, self.queue, self.replacements, self.deletions)
        self.recipe_limits = recipe_limits(
            self.settings, self.base_model, engine_tokens=self.settings.max_model_len
        )

    def _adapters(self) -> Adapters:
        if self.settings.engine == "ray" and self.registry.has_shared_store:
            return ComposedElsewhere(self.engine)
        return Composites(
            self.registry.kes.composites,
            self.engine,
            self.settings.composite_cache_mb * 2**20,
            self.metrics,
            self._held if self.registry.has_shared_store else None,
        )

    def _held(self, one: KE | KM) -> AbstractContextManager[Path]:
        """The files of a KM or a KE, on this machine for as long as the block runs. Blocking."""
        return self.registry.kes.held(one) if isinstance(one, KE) else self.registry.held_km(one)

    def follow(self, document_id: str, after: int) -> AsyncIterator[Event]:
        """The document's events after id `after`: those that happened, then each as it happens."""
        return follow(self.registry, self.redis, document_id, after)


def app_state(request: Request) -> AppState:
    """The state that the request's app was created with."""
    state: AppState = request.app.state.km
    return state


async def _state(request: Request) -> AppState:
    return app_state(request)


State = Annotated[AppState, Depends(_state)]
