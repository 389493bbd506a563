"""What `model` names on the OpenAI-compatible routes: the base model, or a KM by its or its document's id;
with a KE if one is named too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from km_registry.errors import NotFoundError
from km_registry.registry import Registry
from km_registry.types import KM, Action, Claim, Principal
from server.adapters import Adapters
from server.answering import version_salt
from server.callers import Caller, InternalService
from server.engine.base import PRIORITY_SYNTHESIS, PRIORITY_USER, Adapter
from server.errors import ForbiddenError
from server.in_flight import InFlight
from server.kes import KEChoice, KEs
from server.kms import KMs
from server.modes import Mode
from server.revocations import claim_of
from server.schemas_openai import ModelOut

#: The name under which the base model without a KM is asked.
BASE = "base"
#: Before the name or id of the KE that joins in.
WITH_KE = "+"
#: What metrics call the trainer's texts, beside the modes.
SYNTHESIS = "synthesis"


@dataclass(frozen=True, slots=True)
class Asked:
    """With what a request runs, the same for every choice of it, and for which user, if for one.

    `mode` is what metrics call it.
    """

    mode: str
    adapter: Adapter | None
    priority: int
    cache_salt: str
    caller: str | None
    claim: Claim | None = None


class Models:
    """Finds what `model` names, for callers who may use it."""

    def __init__(
        self, registry: Registry, kms: KMs, kes: KEs, composites: Adapters, in_flight: InFlight
    ) -> None:
        self._registry = registry
        self._kms = kms
        self._kes = kes
        self._composites = composites
        self._in_flight = in_flight

    @asynccontextmanager
    async def asked(self, caller: Caller, model: str) -> AsyncIterator[Asked]:
        """What `model` is; while the block runs it is not deleted.

        Raises:
            NotFoundError: nothing that the caller may use.
            NotTrainedError: the document has no KM yet.
            UnknownKEError, NoKEError: there is no such KE.
            ForbiddenError: the internal key asks for more than the base model.
        """
        name, _, ke = model.partition(WITH_KE)
        document_id = await self._document_id(caller, model if isinstance(caller, InternalService) else name)
        if isinstance(caller, InternalService):
            yield Asked(SYNTHESIS, None, PRIORITY_SYNTHESIS, SYNTHESIS, None)
            return
        # Counted before it is asked whether it may be read: see InFlight.
        with self._in_flight.answering(document_id or BASE):
            km, choice = await run_in_threadpool(self._chosen, caller, name, document_id, ke or None)
            mode, salt = Mode.BASE, caller.user_id
            if km is not None:
                mode, salt = Mode.KM, version_salt(km.document_id, km.version)
            async with self._composites.plugged(km, choice.ke) as adapter:
                claim = claim_of(caller, Action.ASK, document_id)
                yield Asked(mode, adapter, PRIORITY_USER, salt, caller.user_id, claim)

    def of(self, principal: Principal) -> list[ModelOut]:
        """What the principal may name as `model`. Blocking."""
        found = [ModelOut(id=BASE, created=0)]
        kms = self._kms.all_of(principal)
        roles = self._registry.people.roles(principal, [km.document_id for km in kms])
        for km in kms:
            created = int(km.created_at.timestamp())
            found += [
                ModelOut(
                    id=name,
                    created=created,
                    parent=BASE,
                    document_id=km.document_id,
                    role=roles.get(km.document_id),
                )
                for name in (km.id, km.document_id)
            ]
        return found

    def one(self, principal: Principal, name: str) -> ModelOut:
        """One of these. Blocking. NotFoundError when it is none of them."""
        for model in self.of(principal):
            if model.id == name:
                return model
        raise NotFoundError

    async def _document_id(self, caller: Caller, model: str) -> str | None:
        if model == BASE:
            return None
        if isinstance(caller, InternalService):
            raise ForbiddenError(f"The internal key may only ask the model {BASE!r}.", param="model")
        if not model.startswith("km_"):
            return model
        return (await run_in_threadpool(self.one, caller, model)).document_id

    def _chosen(
        self, principal: Principal, model: str, document_id: str | None, ke: str | None
    ) -> tuple[KM | None, KEChoice]:
        """The KM, of a document that the principal may ask, and the KE. Blocking."""
        if document_id is None:
            return None, self._kes.choose(ke, Mode.BASE, auto=False)
        return self._km(principal, model, document_id), self._kes.choose(ke, Mode.KM, auto=False)

    def _km(self, principal: Principal, model: str, document_id: str) -> KM:
        self._registry.get_document(principal, document_id, Action.ASK)
        km = self._kms.of(document_id)
        if model.startswith("km_") and km.id != model:
            # A newer one has taken its place in this very moment.
            raise NotFoundError
        return km
