"""The chart: what it renders to, what its settings and policies come to, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.deploy.gotmpl import RefusedError
from tests.unit.deploy.shapes import RAY, SECRETS, STORE, named
from tests.unit.deploy.shapes import chart as shipped_chart
from tests.unit.deploy.shipped import Chart, read_settings


@pytest.fixture
def chart() -> Chart:
    return shipped_chart()


def test_secrets_have_to_be_given(chart: Chart) -> None:
    with pytest.raises(RefusedError, match=r"set secrets.KM_DATABASE_URL"):
        chart.rendered()


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        (SECRETS, {"Deployment", "StatefulSet", "Service", "Secret", "ConfigMap", "NetworkPolicy"}),
        (
            SECRETS | {"redis__enabled": False, "secrets__KM_REDIS_URL": "redis+sentinel://a:1,b:2/m/0"},
            {"Deployment", "Service", "Secret", "ConfigMap", "NetworkPolicy"},
        ),
        (SECRETS | {"ingress__enabled": True, "ingress__tlsSecret": "tls"}, {"Ingress"}),
        (SECRETS | {"serviceMonitor__enabled": True}, {"ServiceMonitor"}),
        (SECRETS | {"existingSecret": "mine", "persistence__existingClaim": "theirs"}, {"Deployment"}),
        (STORE | {"cache__storageClass": "fast", "models__existingClaim": "theirs"}, {"Deployment"}),
        (RAY, {"RayService", "PodDisruptionBudget"}),
        (
            RAY | {"engine__ray__existingTokenSecret": "mine", "store__existingSecret": "mine"},
            {"RayService", "PodDisruptionBudget"},
        ),
    ],
)
def test_what_objects_name_is_there(chart: Chart, changes: dict[str, Any], kinds: set[str]) -> None:
    objects = named(chart.rendered(**changes))
    assert kinds <= {kind for kind, _ in objects}
    given = {("Secret", "mine"), ("PersistentVolumeClaim", "theirs"), ("Secret", "tls")}
    for (kind, _), one in objects.items():
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "km"
        for template in _pods(one):
            if kind != "RayService":
                labels = template["metadata"]["labels"]
                assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
            for name in _references(template["spec"]):
                assert name in objects or name in given, name
            _hardened(template["spec"])


def _pods(one: dict[str, Any]) -> list[dict[str, Any]]:
    """The templates of the object's pods."""
    match one["kind"]:
        case "Deployment" | "StatefulSet":
            return [one["spec"]["template"]]
        case "RayService":
            cluster = one["spec"]["rayClusterConfig"]
            return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
        case _:
            return []


def _references(pod: dict[str, Any]) -> set[tuple[str, str]]:
    found = set()
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        for source in container.get("envFrom", ()):
            for kind, one in source.items():
                found.add((kind[0].upper() + kind[1:].removesuffix("Ref"), one["name"]))
        for variable in container.get("env", ()):
            if "valueFrom" in variable:
                found.add(("Secret", variable["valueFrom"]["secretKeyRef"]["name"]))
    for volume in pod.get("volumes", ()):
        if claim := volume.get("persistentVolumeClaim"):
            found.add(("PersistentVolumeClaim", claim["claimName"]))
    return found


def _hardened(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    # The autoscaler beside Ray's head asks Kubernetes for pods.
    assert pod["automountServiceAccountToken"] is (pod["containers"][0]["name"] == "ray-head")
    # A service called `km` would set KM_PORT.
    assert pod["enableServiceLinks"] is False
    mounts = {volume["name"] for volume in pod.get("volumes", ())} | {"data"}
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= mounts


def test_server_and_worker_agree_on_their_settings(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = named(chart.rendered(**SECRETS))
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
    objects = named(chart.rendered(**SECRETS))
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
        for (kind, name), one in named(chart.rendered(**SECRETS)).items()
        if kind == "NetworkPolicy"
    }
    assert policies["km-deny"].get("ingress") is None
    (rule,) = policies["km-redis"]["ingress"]
    peers = {one["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for one in rule["from"]}
    assert (rule["ports"], peers) == ([{"port": 6379}], {"gateway", "worker"})
    ports = {port["port"] for rule in policies["km-gateway"]["ingress"] for port in rule["ports"]}
    assert ports == {8321}


@pytest.mark.parametrize("shape", [STORE, RAY])
def test_with_a_store_nothing_is_shared_but_the_store(
    chart: Chart, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any]
) -> None:
    objects = named(chart.rendered(**shape))
    assert not [name for kind, name in objects if kind == "PersistentVolumeClaim"]
    assert objects["Secret", "km-store"]["stringData"]["AWS_SECRET_ACCESS_KEY"] == "secret"
    templates = [
        template for one in objects.values() if one["kind"] != "StatefulSet" for template in _pods(one)
    ]
    for template in templates:
        data = next(one for one in template["spec"]["volumes"] if one["name"] == "data")
        assert data["emptyDir"] == {"sizeLimit": "60Gi"}
        assert {"secretRef": {"name": "km-store"}} in template["spec"]["containers"][0]["envFrom"]
    secret = objects["Secret", "km-km-server"]["stringData"]
    server, trainer = read_settings(objects["ConfigMap", "km-settings"]["data"] | secret, monkeypatch)
    assert server.store_url == trainer.store_url == "s3://bucket/km"


def test_a_volume_for_each_pods_copies(chart: Chart) -> None:
    objects = named(chart.rendered(**STORE, cache__storageClass="fast"))
    volumes = objects["Deployment", "km-gateway"]["spec"]["template"]["spec"]["volumes"]
    claim = volumes[0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["accessModes"], claim["storageClassName"]) == (["ReadWriteOnce"], "fast")


def test_pools_of_workers_serve_their_queues_and_have_time_to_leave(
    chart: Chart, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = chart.values["workers"][0]
    large = pool | {"name": "large", "queues": ["large-gpu", "default"], "replicas": 3, "gpus": 4}
    objects = named(chart.rendered(**STORE, workers=[pool, large], worker__shutdownGrace=90))
    shared = objects["ConfigMap", "km-worker"]["data"]
    queues = {}
    for name in ("default", "large"):
        deployment = objects["Deployment", f"km-worker-{name}"]["spec"]
        (container,) = deployment["template"]["spec"]["containers"]
        (told,) = [one["value"] for one in container["env"] if one["name"] == "KM_QUEUES"]
        _, trainer = read_settings(shared | {"KM_QUEUES": told}, monkeypatch)
        assert deployment["template"]["spec"]["terminationGracePeriodSeconds"] > trainer.shutdown_grace == 90
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        queues[name] = (trainer.queues, deployment["replicas"], gpus)
    assert queues == {"default": (("default",), 1, 1), "large": (("large-gpu", "default"), 3, 4)}
    one, other = (objects["Deployment", f"km-worker-{name}"] for name in ("default", "large"))
    assert one["spec"]["selector"] != other["spec"]["selector"]


def test_replicas_are_kuberays_and_gateways_join_them(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = named(chart.rendered(**RAY, engine__ray__settings={"KM_RAY_TARGET_REQUESTS": "4"}))
    gateway = objects["Deployment", "km-gateway"]["spec"]
    assert (gateway["replicas"], gateway["strategy"]["type"]) == (3, "RollingUpdate")
    (container,) = gateway["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    # Ray is joined from a node of Ray, which has to be there first.
    assert container["args"][0].startswith("ray start --address=km-ray-head-svc:6379 --num-cpus=0")
    assert container["args"][0].endswith("&& exec km serve")
    ray = objects["ConfigMap", "km-ray"]["data"]
    told = {name: value for name, value in ray.items() if name.startswith("KM_")}
    shared = objects["ConfigMap", "km-settings"]["data"] | objects["ConfigMap", "km-gateway"]["data"]
    server, _ = read_settings(shared | objects["Secret", "km-km-server"]["stringData"] | told, monkeypatch)
    assert (server.engine, server.ray_address, server.ray_deploy) == ("ray", "auto", False)
    assert (server.ray_replicas, server.ray_max_replicas, server.ray_replica_gpus) == (2, 4, 1)
    assert (server.ray_target_requests, server.session_key) == (4, "s" * 32)


def test_ray_has_a_head_without_replicas_a_token_and_no_keys_of_the_gateways(chart: Chart) -> None:
    objects = named(chart.rendered(**RAY))
    cluster = objects["RayService", "km-ray"]["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"], cluster["enableInTreeAutoscaling"]) == (2, 4, True)
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert cluster["authOptions"] == {"mode": "token", "secretName": "km-ray"}
    assert objects["Secret", "km-ray"]["stringData"] == {"auth_token": "t" * 32}
    for template in _pods(objects["RayService", "km-ray"]):
        assert ("Secret", "km-km-server") not in _references(template["spec"])


def test_ray_is_reached_by_its_pods_gateways_and_kuberay_alone(chart: Chart) -> None:
    objects = named(chart.rendered(**RAY))
    policy = objects["NetworkPolicy", "km-ray"]["spec"]
    for template in _pods(objects["RayService", "km-ray"]):
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    inside, operator = policy["ingress"]
    peers = {one["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for one in inside["from"]}
    assert (peers, [port["port"] for port in operator["ports"]]) == ({"ray", "gateway"}, [8265, 8000])
    back = objects["NetworkPolicy", "km-gateway"]["spec"]["ingress"][-1]["from"]
    assert [one["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for one in back] == ["ray"]
    assert len(objects["NetworkPolicy", "km-redis"]["spec"]["ingress"][0]["from"]) == 2


def test_rays_head_may_keep_what_it_knows_in_redis(chart: Chart) -> None:
    gcs = {"redisAddress": "redis://km-redis:6379", "passwordSecret": "mine"}
    objects = named(chart.rendered(**RAY, engine__ray__gcs=gcs))
    cluster = objects["RayService", "km-ray"]["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis://km-redis:6379"
    peers = objects["NetworkPolicy", "km-redis"]["spec"]["ingress"][0]["from"]
    assert peers[-1]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "ray"


def test_all_but_one_stay_while_nodes_are_drained(chart: Chart) -> None:
    objects = named(chart.rendered(**RAY))
    assert objects["PodDisruptionBudget", "km-gateway"]["spec"]["maxUnavailable"] == 1
    assert objects["PodDisruptionBudget", "km-ray"]["spec"]["minAvailable"] == 1
    kinds = {one["kind"] for one in chart.rendered(**SECRETS)}
    assert "PodDisruptionBudget" not in kinds


def test_changed_settings_make_new_pods(chart: Chart) -> None:
    def sums(**changes: Any) -> dict[str, str]:
        found = {}
        for (kind, name), one in named(chart.rendered(**RAY, **changes)).items():
            if kind in ("Deployment", "RayService"):
                found[name] = _pods(one)[0]["metadata"]["annotations"]["checksum/settings"]
        return found

    before = sums()
    assert sums() == before
    slots = sums(gateway__settings=chart.values["gateway"]["settings"] | {"KM_MAX_LORAS": "16"})
    changed = {name for name in before if slots[name] != before[name]}
    assert changed == {"km-gateway", "km-ray"}
    assert sums(engine__ray__keepOldSeconds=60) == before


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        (SECRETS, {"engine__kind": "tgi"}, "engine.kind is tgi: give vllm"),
        (SECRETS, {"gateway__replicas": 2}, "set engine.kind to ray"),
        (SECRETS, {"redis__enabled": False}, "set secrets.KM_REDIS_URL to your own"),
        (SECRETS, {"worker__settings": {"KM_QUEUES": "a"}}, "KM_QUEUES is set by"),
        (SECRETS, {"settings__KM_STORE_URL": "file:///mnt/km"}, "the chart mounts none"),
        (RAY, {"settings__KM_STORE_URL": ""}, "needs an object store"),
        (RAY, {"secrets__KM_SESSION_KEY": ""}, "set secrets.KM_SESSION_KEY"),
        (RAY, {"engine__ray__token": ""}, "set engine.ray.token"),
        (RAY, {"engine__ray__maxReplicas": 1}, "maxReplicas is less"),
        (RAY, {"engine__ray__groups": []}, "engine.ray.groups is empty"),
    ],
)
def test_what_cannot_work_is_refused(
    chart: Chart, shape: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        chart.rendered(**(shape | changes))


def test_pools_and_groups_that_cannot_work_are_refused(chart: Chart) -> None:
    pool, group = chart.values["workers"][0], chart.values["engine"]["ray"]["groups"][0]
    with pytest.raises(RefusedError, match="two pools are called default"):
        chart.rendered(**SECRETS, workers=[pool, pool])
    with pytest.raises(RefusedError, match="the pool default serves no queue"):
        chart.rendered(**SECRETS, workers=[pool | {"queues": []}])
    with pytest.raises(RefusedError, match="gpu has no GPUs, and replicas take some"):
        chart.rendered(**RAY, engine__ray__groups=[group | {"gpus": 0}])
    with pytest.raises(RefusedError, match="gpu has a maxReplicas below its minReplicas"):
        chart.rendered(**RAY, engine__ray__groups=[group | {"maxReplicas": 1}])
