"""Dashboard, alerts and scraping: they name only metrics, labels' values and places that there are."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
import yaml

from km_registry.store.measures import TrainingMeasures
from server.engine.base import EngineStatus
from server.metrics import Metrics
from tests.unit.deploy.shipped import DEPLOY

DASHBOARD = json.loads((DEPLOY / "grafana" / "km-server.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Every name that the server may tell."""
    metrics = Metrics()
    metrics.engine(EngineStatus(**{field.name: 0 for field in dataclasses.fields(EngineStatus)}))
    metrics.training(TrainingMeasures(0.0, {}, 1.0, 1.0, 0), 0)
    metrics.refused(queue=0, timeout=0, restarts=0)
    return {family.name + suffix for family in metrics.registry.collect() for suffix in SUFFIXES[family.type]}


def _shown() -> list[tuple[str, str]]:
    return [
        (panel["title"], target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


def _alerts() -> list[tuple[str, dict[str, Any]]]:
    return [(rule["alert"], rule) for group in RULES for rule in group["rules"]]


def _named(expression: str) -> set[str]:
    return set(re.findall(r"\bkm_[a-z_]+", expression))


def test_what_is_shown_is_told(names: set[str]) -> None:
    for title, expression in _shown():
        assert _named(expression), title
        assert _named(expression) <= names, title
        assert expression.count("(") == expression.count(")"), title


def test_what_alerts_is_told(names: set[str]) -> None:
    for alert, rule in _alerts():
        assert _named(rule["expr"]) <= names, alert
        assert _named(rule["expr"]) or "up{" in rule["expr"], alert
        assert rule["expr"].count("(") == rule["expr"].count(")"), alert
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_gateway_engine_adapters_queue_and_training_are_all_shown(names: set[str]) -> None:
    shown = {name for _, expression in _shown() for name in _named(expression)}
    families = {re.sub(r"_(?:total|bucket|sum|count)$", "", name) for name in shown}
    told = {re.sub(r"_(?:total|bucket|sum|count)$", "", name) for name in names if name.startswith("km_")}
    assert told - families == set(), "metrics without a panel"


def test_panels_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_scrapes_the_gateway_with_a_key_and_reads_the_rules() -> None:
    read = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = read["scrape_configs"]
    assert (job["job_name"], job["metrics_path"]) == ("km-server", "/metrics")
    assert job["static_configs"] == [{"targets": ["gateway:8321"]}]
    assert job["authorization"]["credentials_file"] == "/etc/prometheus/key"
    assert read["rule_files"] == ["/etc/prometheus/alerts.yml"]
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert sources["datasources"][0]["uid"] == DASHBOARD["panels"][1]["datasource"]["uid"]
