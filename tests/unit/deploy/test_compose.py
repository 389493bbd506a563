"""compose.yaml: its settings by the program's own, and what is reachable."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.unit.deploy.shipped import DEPLOY, filled, read_settings

ENVIRONMENT = (DEPLOY / "compose.env.example").read_text()
_LINES = re.findall(r"^([A-Z_]+)=(.*)$", ENVIRONMENT, re.MULTILINE)
VARIABLES = {name: value or f"secret-of-{name}" for name, value in _LINES}


def _read(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(filled((DEPLOY / file).read_text(), VARIABLES))
    return found


@pytest.fixture
def composed() -> dict[str, Any]:
    return _read("compose.yaml")


@pytest.fixture
def on_ray(composed: dict[str, Any]) -> dict[str, Any]:
    """Services with compose.ray.yaml beside it, which adds to their environments and replaces the rest."""
    services: dict[str, Any] = composed["services"]
    for name, added in _read("compose.ray.yaml")["services"].items():
        before = services.get(name, {})
        environment = before.get("environment", {}) | added["environment"]
        services[name] = before | added | {"environment": environment}
    return services


@pytest.mark.parametrize("file", ["compose.yaml", "compose.ray.yaml"])
def test_every_secret_stands_in_the_example_and_has_to_be_given(file: str) -> None:
    text = (DEPLOY / file).read_text()
    required = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    assert required <= set(VARIABLES)
    assert not re.search(r"^(?:KM_INTERNAL_KEY|\w+_PASSWORD)=.", ENVIRONMENT, re.MULTILINE)
    for name in required:
        with pytest.raises(AssertionError, match=name):
            filled(text, VARIABLES | {name: ""})


def test_server_and_worker_agree_on_their_settings(
    composed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, worker = composed["services"]["gateway"], composed["services"]["worker"]
    server, _ = read_settings(gateway["environment"], monkeypatch)
    assert (server.host, server.port, server.local_worker) == ("0.0.0.0", 8321, False)
    _, trainer = read_settings(worker["environment"], monkeypatch)
    assert trainer.generator_url == "http://gateway:8321/v1"
    assert trainer.generator_key == server.internal_key
    assert (trainer.redis_url, trainer.database_url) == (server.redis_url, server.database_url)
    assert gateway["volumes"] == worker["volumes"] == ["data:/data"]


def test_images_are_pinned_and_redis_is_new_enough(composed: dict[str, Any]) -> None:
    images = {name: one["image"] for name, one in composed["services"].items()}
    for name in ("redis", "postgres", "prometheus", "grafana"):
        assert re.search(r":v?\d+\.\d+", images[name]), images[name]
    assert int(re.findall(r":(\d+)\.", images["redis"])[0]) >= 7


def test_only_gateway_and_grafana_are_reachable_and_from_this_machine_alone(
    composed: dict[str, Any],
) -> None:
    services = composed["services"]
    assert {name for name, one in services.items() if "ports" in one} == {"gateway", "grafana"}
    assert all(port.startswith("127.0.0.1:") for one in services.values() for port in one.get("ports", ()))
    assert composed["networks"]["inside"] == {"internal": True}
    assert services["redis"]["networks"] == services["postgres"]["networks"] == ["inside"]


def test_files_and_names_that_it_mentions_are_there(composed: dict[str, Any]) -> None:
    for service in composed["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            made_by_the_operator = source == VARIABLES["PROMETHEUS_KEY_FILE"]
            assert source in composed["volumes"] or made_by_the_operator or (DEPLOY / source).exists(), source
        for other in service.get("depends_on", ()):
            assert "healthcheck" in composed["services"][other] or other == "gateway"
    assert (DEPLOY.parent / composed["services"]["gateway"]["build"]["dockerfile"]).exists()
    gpu = yaml.safe_load(filled((DEPLOY / "compose.gpu.yaml").read_text(), {}))
    assert set(gpu["services"]) <= set(composed["services"])
    assert all((DEPLOY.parent / one["build"]["dockerfile"]).exists() for one in gpu["services"].values())


def test_replicas_are_on_rays_other_nodes_and_all_have_the_token(
    on_ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, replicas = on_ray["gateway"], on_ray["replicas"]
    server, _ = read_settings(gateway["environment"], monkeypatch)
    assert (server.engine, server.ray_address, server.ray_deploy) == ("ray", "auto", True)
    assert (server.ray_replicas, server.ray_max_replicas, server.local_worker) == (1, 2, False)
    head, node = gateway["entrypoint"][-1], replicas["entrypoint"][-1]
    assert re.search(r"^ray start --head --port=6399 --num-cpus=0 --num-gpus=0 .* && exec km serve$", head)
    assert re.search(r"; exec ray start --address=gateway:6399 .* --block$", node)
    tokens = {on_ray[name]["environment"]["RAY_AUTH_TOKEN"] for name in ("gateway", "replicas")}
    assert tokens == {"secret-of-RAY_AUTH_TOKEN"}
    assert replicas["volumes"] == gateway["volumes"]
    assert "ports" not in replicas


def test_a_worker_has_a_queue_of_its_own_and_time_to_leave(
    on_ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = on_ray["worker-large"], on_ray["worker"]
    assert worker["command"] == ["worker", "--queue", "large"]
    _, trainer = read_settings(worker["environment"], monkeypatch)
    assert int(worker["stop_grace_period"].removesuffix("s")) > trainer.shutdown_grace == 45
    shared = set(other["environment"]) - {"KM_INTERNAL_KEY"}
    assert {name: worker["environment"].get(name) for name in shared} == {
        name: other["environment"][name] for name in shared
    }
