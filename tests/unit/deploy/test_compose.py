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


@pytest.fixture
def composed() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(filled((DEPLOY / "compose.yaml").read_text(), VARIABLES))
    return found


def test_every_secret_stands_in_the_example_and_has_to_be_given() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
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
