"""How engine replicas are put on Ray Serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: The application on Ray Serve that gateways share. One cluster serves one base model.
APP = "km-engine"
DEPLOYMENT = "EngineReplica"
#: Serve loads it by its path.
ROUTER = "server.engine.ray_routing.ResidencyRequestRouter"


@dataclass(frozen=True, slots=True)
class RayConfig:
    """Where Ray is, and what the replicas are.

    Without an `address` a Ray of our own is started on this machine, and ended with us; its files lie in
    `directory`. With `max_replicas` above `replicas` Serve adds and removes replicas by itself, so that each
    has about `target_requests` at a time and, if given, first tokens come within `target_first_token_s`.
    `fingerprint` is the base model's: replicas with another one are refused. `router` is Serve's request
    router. Without `deploys` the application is somebody else's to deploy, and waited for.
    """

    fingerprint: str
    slots: int
    directory: Path
    address: str | None = None
    replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    target_requests: float = 8.0
    target_first_token_s: float | None = None
    deploys: bool = True
    app: str = APP
    router: str = ROUTER
