"""Changed settings and new code for an application that runs on Ray Serve: its replicas are replaced one
after the other, and none of its requests is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ReplicaState

from server.engine.base import EngineUnavailableError
from server.engine.ray_cluster import Cluster, first_line, running
from server.engine.ray_engine import refuse_unless_ours
from server.engine.ray_replica import Description
from server.engine.ray_settings import DEPLOYMENT, RayConfig, differences

_ANSWER_S = 30.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """How the application is: in what state, how many replicas in each, and in which settings it differs from
    those in force here. `message` is what Serve says of it, if anything."""

    state: str
    replicas: dict[str, int]
    differing: list[str]
    message: str = ""


def found(config: RayConfig, cluster: Cluster) -> Found | None:
    """The application on a connected cluster; None when there is none. EngineUnavailableError."""
    status = cluster.status()
    if status is None:
        return None
    described = _described(config) if running(status) else None
    differing = differences(config.settings, described.settings) if described else []
    return Found(_state(status), _states(status), differing, status.message)


def roll_out(config: RayConfig, cluster: Cluster) -> Iterator[Found]:
    """Replace every replica by one that is made as the cluster's are made now; how it goes, at every change.

    Replicas that are to end finish what they have. Whoever stops iterating leaves that to Serve, which goes
    on by itself.

    Raises:
        EngineUnavailableError: replicas with another base model or store run there, which gateways use, or
            the new ones do not start; then those of before go on.
    """
    status = cluster.status()
    if status is not None and running(status):
        refuse_unless_ours(config, _described(config))
    try:
        target = serve.RunTarget(cluster.application(), name=config.app, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)
        yield from _progress(cluster)
    except (RayServeException, RayError, RuntimeError, ValueError) as error:
        raise EngineUnavailableError(f"Ray Serve does not take it ({first_line(error)})") from error


def _progress(cluster: Cluster) -> Iterator[Found]:
    before = None
    while (status := cluster.status()) is not None:
        message = status.deployments[DEPLOYMENT].message if DEPLOYMENT in status.deployments else ""
        now = Found(_state(status), _states(status), [], message)
        if now != before:
            yield now
        before = now
        if status.status == ApplicationStatus.RUNNING:
            return
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            raise EngineUnavailableError(
                f"the new replicas do not start, and those of before go on: {message or status.message}"
            )
        time.sleep(_LOOK_S)  # Serve has no event for it
    raise EngineUnavailableError("the application was removed meanwhile")


def _described(config: RayConfig) -> Description:
    handle: Any = serve.get_app_handle(config.app)
    try:
        described: Description = handle.describe.remote().result(timeout_s=_ANSWER_S)
    except (RayServeException, RayError, TimeoutError) as error:
        raise EngineUnavailableError(f"no replica says what it is ({first_line(error)})") from error
    return described


def _state(status: ApplicationStatusOverview) -> str:
    return str(ApplicationStatus(status.status).value)


def _states(status: ApplicationStatusOverview) -> dict[str, int]:
    deployment = status.deployments.get(DEPLOYMENT)
    if deployment is None:
        return {}
    counts = deployment.replica_states.items()
    return {str(ReplicaState(state).value).lower(): count for state, count in counts if count}
