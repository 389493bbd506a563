"""Who may call: users, and the server's own trainer."""

from __future__ import annotations

from dataclasses import dataclass

from km_registry.types import Principal


@dataclass(frozen=True, slots=True)
class InternalService:
    """The trainer, known by the server's own key: it may have the base model write, and nothing else."""


Caller = Principal | InternalService
