"""The engine's application for whoever deploys it on Ray Serve by a path, as KubeRay's RayService does.

applications: [{name: km-engine, import_path: "server.ray_application:build", route_prefix: null}]
"""

from __future__ import annotations

from typing import Any

from km_registry import base_model
from km_registry.errors import KMError
from server.config import ServerSettings
from server.engine.ray_cluster import Cluster
from server.ray_composition import ray_config, replica_maker


def build(arguments: dict[str, str]) -> Any:
    """The application, as the KM_* settings of the Ray node say on which Serve builds it: the head.

    Gateways with the same settings and KM_RAY_DEPLOY=false join it. The base model has to be there as it is
    on the nodes of the replicas, since what others have is refused.

    Raises:
        KMError: it was given arguments.
        BaseModelError: the base model is not there.
    """
    if arguments:
        raise KMError(f"The engine is set by KM_* variables; leave out the arguments {', '.join(arguments)}")
    settings = ServerSettings()
    model = base_model.resolve(settings.base_model, settings.data_dir)
    return Cluster(ray_config(settings, model), replica_maker(settings, model)).application()
