"""Joining Ray, and putting the engine's application on Ray Serve where it is not there yet."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import grpc
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ReplicaState

from server.engine.base import EngineNotReachedError, EngineUnavailableError
from server.engine.ray_adapters import MakeReplica
from server.engine.ray_replica import EngineReplica
from server.engine.ray_settings import DEPLOYMENT, RayConfig

#: More than one replica will ever have: how many wait is for the gateways to bound.
_MAX_ONGOING = 4096
_HEALTH_PERIOD_S = 1.0
#: How often replicas tell what is in their slots.
_TOLD_EVERY_S = 1.0
_HEALTH_TIMEOUT_S = 10.0
#: Longest wait for an application that somebody else is deploying: large models take minutes to load.
_START_S = 1200.0
#: How long a replica that is replaced may finish what it has, in seconds.
_GRACE_S = 300.0
#: Of the replicas, how many new ones may start at a time in a roll-out before old ones end; at least one.
_SURGE_PERCENT = 25
#: Ray itself tries for minutes to reach a cluster.
_REACHED_S = 5.0
#: What a Ray of our own needs of shared memory: requests and answers are small.
_OBJECT_STORE_BYTES = 100 * 2**20
#: Of the 107 characters of a socket's path Ray needs the others for its own.
_LONGEST_PATH = 40


class Cluster:
    """A gateway's connection to Ray. All methods block."""

    def __init__(self, config: RayConfig, make: MakeReplica) -> None:
        """`make` makes what a replica is, in the replica's process; it is pickled."""
        self._config = config
        self._make = make
        #: Whether the connection is ours: this process may have had one already.
        self._connected = False

    def join(self) -> Any:
        """A handle of the application, which is deployed if no gateway has done so and gateways are to do it.

        Raises:
            EngineNotReachedError: there is no Ray.
            EngineUnavailableError: no replica starts.
        """
        self.connect()
        try:
            if self._is_there():
                return serve.get_app_handle(self._config.app)
            return serve.run(self.application(), name=self._config.app, route_prefix=None)
        except (RayServeException, RayError, RuntimeError, ValueError, TimeoutError) as error:
            self.leave()
            raise EngineUnavailableError(
                f"no engine replica starts on Ray ({first_line(error)}); see the logs of Ray Serve"
            ) from error

    def connect(self) -> None:
        """Join Ray, and start Serve on it where it does not run, if that is ours to do.
        EngineNotReachedError."""
        config = self._config
        try:
            self._connect()
            if config.deploys:
                serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        except (RayServeException, RayError, RuntimeError, ValueError, OSError) as error:
            self.leave()
            where = f"at {config.address}" if config.address else "on this machine"
            raise EngineNotReachedError(
                f"Ray is not reached {where} ({first_line(error)}). Start it (ray start --head), correct "
                "KM_RAY_ADDRESS, or leave it out to have one started here."
            ) from error

    def status(self) -> ApplicationStatusOverview | None:
        """How the application is, for one that is connected; None when it was never deployed."""
        found: ApplicationStatusOverview | None = serve.status().applications.get(self._config.app)
        return found

    def _is_there(self) -> bool:
        """Whether replicas serve, once whoever deploys the application or starts them again has done so.

        An application that failed is deployed anew, by us or by who deploys, unless replicas of before go on.
        """
        deadline = time.monotonic() + _START_S
        while True:
            found = self.status()
            if found is not None and running(found) and found.status != ApplicationStatus.DELETING:
                return True
            is_to_do = found is None or found.status == ApplicationStatus.DEPLOY_FAILED
            if is_to_do and self._config.deploys:
                return False
            if time.monotonic() > deadline:
                state = "not there" if found is None else found.status
                raise TimeoutError(f"{self._config.app} is {state} for {_START_S:g} seconds")
            time.sleep(0.5)  # Serve has no event for it, and this is a thread of its own

    def application(self) -> Any:
        """The application: one deployment of engine replicas."""
        config = self._config
        deployment = _deployment(config)(EngineReplica)
        return deployment.bind(self._make, config.fingerprint, dict(config.settings))

    def leave(self) -> None:
        """Disconnect; a Ray of our own ends with all it runs. Idempotent."""
        if not self._connected:
            return
        self._connected = False
        if self._config.address is None:
            serve.shutdown()
        ray.shutdown()

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        config = self._config
        # Read when Ray's processes start. Nothing is reported to anybody.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.WARNING,
            "namespace": "km",
        }
        if config.address is not None:
            # Ray takes its own variable's address in place of any other.
            _require_listener(os.environ.get("RAY_ADDRESS") or config.address)
            ray.init(address=config.address, **options)
        else:
            config.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=max(os.cpu_count() or 1, round(config.cpus * config.max_replicas) + 1),
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=_short(config),
                **options,
            )
        self._connected = True


def running(found: ApplicationStatusOverview) -> int:
    """How many replicas serve."""
    states = found.deployments[DEPLOYMENT].replica_states if DEPLOYMENT in found.deployments else {}
    return int(states.get(ReplicaState.RUNNING, 0))


def _deployment(config: RayConfig) -> Any:
    options: dict[str, Any] = {"num_replicas": config.replicas}
    if config.max_replicas > config.replicas:
        scaling = {
            "target_requests": config.target_requests,
            "target_first_token_s": config.target_first_token_s,
        }
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=config.replicas,
                max_replicas=config.max_replicas,
                policy=AutoscalingPolicy(
                    policy_function="server.engine.ray_scaling:Scaling", policy_kwargs=scaling
                ),
            )
        }
    return serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=_MAX_ONGOING,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=_GRACE_S,
        max_surge_percent=_SURGE_PERCENT if config.surge else 0,
        request_router_config=RequestRouterConfig(
            request_router_class=config.router,
            request_router_kwargs={"slots": config.slots},
            request_routing_stats_period_s=_TOLD_EVERY_S,
        ),
        **options,
    )


def _require_listener(address: str) -> None:
    """ConnectionError unless a Ray may listen there; an address that Ray finds by itself is its to check."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    if parts.port is None:
        return
    try:
        socket.create_connection((parts.hostname or "", parts.port), _REACHED_S).close()
    except OSError as error:
        raise ConnectionError(f"nobody answers at {parts.netloc}: {error.strerror or error}") from error
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    with grpc.insecure_channel(parts.netloc, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            grpc.channel_ready_future(channel).result(_REACHED_S)
        except grpc.FutureTimeoutError as error:
            raise ConnectionError(f"what answers at {parts.netloc} is no Ray") from error


def _short(config: RayConfig) -> str | None:
    """The directory of Ray's files; None for Ray's own choice where its sockets' paths would be too long."""
    path = str(config.directory)
    return path if len(path) <= _LONGEST_PATH else None


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
