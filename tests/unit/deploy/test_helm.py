"""The chart: what it renders to, and what its settings and policies come to."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.deploy.shipped import DEPLOY, Chart, read_settings

SECRETS = {
    "secrets__KM_DATABASE_URL": "postgresql://km:secret@db/km",
    "secrets__KM_INTERNAL_KEY": "k" * 32,
}


@pytest.fixture
def chart() -> Chart:
    return Chart(DEPLOY / "helm" / "km-server")


def _named(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    named = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(named) == len(objects)
    return named


def test_secrets_have_to_be_given(chart: Chart) -> None:
    with pytest.raises(AssertionError, match=r"set secrets.KM_DATABASE_URL"):
        chart.rendered()


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, {"Deployment", "StatefulSet", "Service", "Secret", "ConfigMap", "NetworkPolicy"}),
        ({"redis__enabled": False}, {"Deployment", "Service", "Secret", "ConfigMap", "NetworkPolicy"}),
        ({"ingress__enabled": True, "ingress__tlsSecret": "tls"}, {"Ingress"}),
        ({"serviceMonitor__enabled": True}, {"ServiceMonitor"}),
        ({"existingSecret": "mine", "persistence__existingClaim": "theirs"}, {"Deployment"}),
    ],
)
def test_what_objects_name_is_there(chart: Chart, changes: dict[str, Any], kinds: set[str]) -> None:
    objects = _named(chart.rendered(**SECRETS, **changes))
    assert kinds <= {kind for kind, _ in objects}
    given = {("Secret", "mine"), ("PersistentVolumeClaim", "theirs"), ("Secret", "tls")}
    for (kind, _), one in objects.items():
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "km"
        if kind not in ("Deployment", "StatefulSet"):
            continue
        pod = one["spec"]["template"]["spec"]
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
        for name in _references(pod):
            assert name in objects or name in given, name
        _hardened(pod)


def _references(pod: dict[str, Any]) -> set[tuple[str, str]]:
    found = set()
    for container in pod["containers"]:
        for source in container.get("envFrom", ()):
            for kind, one in source.items():
                found.add((kind[0].upper() + kind[1:].removesuffix("Ref"), one["name"]))
        for variable in container.get("env", ()):
            found.add(("Secret", variable["valueFrom"]["secretKeyRef"]["name"]))
    for volume in pod.get("volumes", ()):
        if claim := volume.get("persistentVolumeClaim"):
            found.add(("PersistentVolumeClaim", claim["claimName"]))
    return found


def _hardened(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    mounts = {volume["name"] for volume in pod.get("volumes", ())} | {"data"}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= mounts


def test_server_and_worker_agree_on_their_settings(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = _named(chart.rendered(**SECRETS))
    secret = objects["Secret", "km-km-server"]["stringData"]
    shared = objects["ConfigMap", "km-settings"]["data"] | secret
    server, _ = read_settings(shared | objects["ConfigMap", "km-gateway"]["data"], monkeypatch)
    assert (server.host, server.port, server.local_worker) == ("0.0.0.0", 8321, False)
    assert server.redis_url == "redis://km-redis:6379/0"
    told = objects["ConfigMap", "km-worker"]["data"] | {"KM_GENERATOR_KEY": secret["KM_INTERNAL_KEY"]}
    _, worker = read_settings(shared | told, monkeypatch)
    assert worker.generator_url == "http://km-gateway:8321/v1"
    assert worker.generator_key == server.internal_key
    assert worker.database_url == server.database_url


def test_the_gateway_is_asked_whether_it_is_ready_and_gets_a_gpu(chart: Chart) -> None:
    objects = _named(chart.rendered(**SECRETS))
    (gateway,) = objects["Deployment", "km-gateway"]["spec"]["template"]["spec"]["containers"]
    probes = ("startup", "liveness", "readiness")
    paths = {name: gateway[f"{name}Probe"]["httpGet"]["path"] for name in probes}
    assert paths == {"startup": "/readyz", "liveness": "/healthz", "readiness": "/readyz"}
    assert gateway["resources"]["limits"]["nvidia.com/gpu"] == 1
    service = objects["Service", "km-gateway"]
    assert service["spec"]["ports"][0]["targetPort"] == gateway["ports"][0]["name"]


def test_redis_is_reached_by_gateway_and_workers_alone(chart: Chart) -> None:
    policies = {
        name: one["spec"]
        for (kind, name), one in _named(chart.rendered(**SECRETS)).items()
        if kind == "NetworkPolicy"
    }
    assert policies["km-deny"].get("ingress") is None
    (rule,) = policies["km-redis"]["ingress"]
    peers = {one["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for one in rule["from"]}
    assert (rule["ports"], peers) == ([{"port": 6379}], {"gateway", "worker"})
    ports = {port["port"] for rule in policies["km-gateway"]["ingress"] for port in rule["ports"]}
    assert ports == {8321}
