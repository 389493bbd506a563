"""The shapes that the chart is installed in: changes of its values, as `Chart.rendered` takes them."""

from __future__ import annotations

from typing import Any

from tests.unit.deploy.shipped import DEPLOY, Chart

SECRETS = {
    "secrets__KM_DATABASE_URL": "postgresql://km:secret@db/km",
    "secrets__KM_INTERNAL_KEY": "k" * 32,
}
#: Gateway and workers on machines of their own, with one engine.
STORE = {
    **SECRETS,
    "settings__KM_STORE_URL": "s3://bucket/km",
    "store__credentials": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"},
}
#: Several gateways and engine replicas.
RAY = {
    **STORE,
    "secrets__KM_SESSION_KEY": "s" * 32,
    "engine__kind": "ray",
    "engine__ray__token": "t" * 32,
    "gateway__replicas": 3,
}


def chart() -> Chart:
    """The chart that is shipped."""
    return Chart(DEPLOY / "helm" / "km-server")


def named(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Objects by kind and name, of which there is one each."""
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(found) == len(objects)
    return found


def serve_config() -> str:
    """What the chart has KubeRay deploy on Ray Serve."""
    service = named(chart().rendered(**RAY))["RayService", "km-ray"]
    return str(service["spec"]["serveConfigV2"])
