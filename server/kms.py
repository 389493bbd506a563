"""The KMs that can be asked: found, and known to the engine."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

from km_registry.artifacts import MANIFEST
from km_registry.base_model import BaseModel
from km_registry.errors import ConflictError
from km_registry.prompts import PROMPT_FORMAT
from km_registry.registry import Registry
from km_registry.types import KM, Job, JobState, Principal
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
        trained_for = self._formats.get(km.id)
        if trained_for is None:
            with self._registry.held_km(km) as directory:
                trained_for = _prompt_format(directory)
            self._formats[km.id] = trained_for
            if len(self._formats) > _REMEMBERED:
                self._formats.popitem(last=False)
        if trained_for == PROMPT_FORMAT:
            return None
        return (
            f"The KM was trained for the prompt format {trained_for}, and is asked in {PROMPT_FORMAT}: its "
            "answers may be worse than they were measured. Train the document again."
        )


def _prompt_format(directory: Path) -> str:
    """The prompt format in a KM's manifest; "unknown" when it does not say. The engine verifies the KM."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return "unknown"
    found = manifest.get("prompt_format") if isinstance(manifest, dict) else None
    return found if isinstance(found, str) else "unknown"


def adapter_of(km: KM) -> Adapter:
    """The KM as the engine knows it."""
    return Adapter(name=km.id, engine_id=km.engine_id, path=Path(km.path))


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
