"""The KMs that can be asked: found, and known to the engine."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

from km_registry.base_model import BaseModel
from km_registry.errors import ConflictError, StoreUnavailableError
from km_registry.prompts import PROMPT_FORMAT
from km_registry.registry import Registry
from km_registry.types import KE, KM, Job, JobState, Principal
from server.engine.base import Adapter
from server.errors import NotTrainedError

#: KMs whose prompt format is remembered. They never change, so it is read once.
_REMEMBERED = 4096


class KMs:
    """Finds the KMs that can be asked on the base model that is served."""

    def __init__(self, registry: Registry, base_model: BaseModel) -> None:
        self._registry = registry
        self._base_model = base_model
        self._formats: OrderedDict[str, str] = OrderedDict()

    def of(self, document_id: str) -> KM:
        """The document's KM. Blocking; the caller has asked whether it may be used.

        Raises:
            NotTrainedError: there is none yet; the message says how far its training is.
            ConflictError: it is for another base model.
        """
        km = self._registry.km_of(document_id)
        if km is None:
            raise NotTrainedError(not_trained(self._registry.job_of(document_id)))
        if km.base_fingerprint != self._base_model.fingerprint:
            raise ConflictError(
                "This document's KM was trained for another base model than the one that is served, "
                f"{self._base_model.name}. Delete the document and upload it again; modes rag and icl "
                "answer meanwhile."
            )
        return km

    def all_of(self, principal: Principal) -> list[KM]:
        """The principal's KMs, newest first. Blocking."""
        found = self._registry.kms_of(principal)
        return [km for km in found if km.base_fingerprint == self._base_model.fingerprint]

    def warning(self, km: KM) -> str | None:
        """What to beware of in its answers: that it was trained under another prompt format. Blocking."""
        try:
            trained_for = self._format(km)
        except StoreUnavailableError:
            # Said when the store is back: an engine elsewhere has answered from its own copy.
            return None
        if trained_for == PROMPT_FORMAT:
            return None
        return (
            f"The KM was trained for the prompt format {trained_for}, and is asked in {PROMPT_FORMAT}: its "
            "answers may be worse than they were measured. Train the document again."
        )

    def _format(self, km: KM) -> str:
        """The prompt format that the KM was trained for. Blocking."""
        known = self._formats.get(km.id)
        if known is None:
            known = self._formats[km.id] = _prompt_format(self._registry, km)
            if len(self._formats) > _REMEMBERED:
                self._formats.popitem(last=False)
        return known


def _prompt_format(registry: Registry, km: KM) -> str:
    """The prompt format in a KM's manifest; "unknown" when it does not say. The engine verifies the KM."""
    try:
        manifest = json.loads(registry.km_manifest(km))
    except (OSError, ValueError):
        return "unknown"
    found = manifest.get("prompt_format") if isinstance(manifest, dict) else None
    return found if isinstance(found, str) else "unknown"


def adapter_of(one: KM | KE) -> Adapter:
    """The KM as the engine knows it; of a KE, what stands for all that is made of it and is never asked."""
    if isinstance(one, KE):
        return Adapter(name=one.id, engine_id=0, path=Path(one.path), ke=one)
    return Adapter(name=one.id, engine_id=one.engine_id, path=Path(one.path), km=one)


def not_trained(job: Job) -> str:
    """Why there is no KM yet, and what to do."""
    here = f"/documents/{job.document_id}"
    if job.state is JobState.FAILED:
        reason = (job.error or "no reason was recorded").rstrip(".")
        return (
            f"This document has no KM: its training failed ({reason}). Retry with POST {here}/train; "
            "modes rag and icl answer meanwhile."
        )
    if job.state is JobState.CANCELLED:
        return f"This document has no KM: its training was cancelled. Start it with POST {here}/train."
    return (
        f"This document's KM is not trained yet: its job is {job.state}, at {job.progress}. Ask with mode "
        f"rag or icl meanwhile, or follow GET {here}/events."
    )
