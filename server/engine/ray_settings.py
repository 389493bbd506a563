"""How engine replicas are put on Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: The application on Ray Serve that gateways share. One cluster serves one base model.
APP = "km-engine"
DEPLOYMENT = "EngineReplica"
#: The setting by which replicas have KMs, as they tell it.
STORE = "KM_STORE_URL"
#: Serve loads it by its path.
ROUTER = "server.engine.ray_routing.ResidencyRequestRouter"


@dataclass(frozen=True, slots=True)
class RayConfig:
    """Where Ray is, and what the replicas are.

    Without an `address` a Ray of our own is started on this machine, and ended with us; its files lie in
    `directory`. With `max_replicas` above `replicas` Serve adds and removes replicas by itself, so that each
    has about `target_requests` at a time and, if given, first tokens come within `target_first_token_s`.
    `fingerprint` is the base model's: replicas with another one are refused. `router` is Serve's request
    router. Without `deploys` the application is somebody else's to deploy, and waited for. `settings` are
    those, by name, that replicas are made with and tell: where others run, an operator is told. With `surge`
    replicas that replace others start before those end, as far as there is room.
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
    settings: Mapping[str, str] = field(default_factory=dict)
    surge: bool = True


def differences(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """In which settings replicas that run differ from those in force here, for people."""
    here, there = ({name: one.get(name, "unknown") for name in {*mine, *theirs}} for one in (mine, theirs))
    differing = sorted(name for name in here if here[name] != there[name])
    return [f"{name} is {there[name]} there, {here[name]} here" for name in differing]
