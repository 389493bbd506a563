"""Dashboard, alerts and scraping: they name only metrics, labels' values and places that there are."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from typing import Any

import pytest
import yaml

from km_registry.store.measures import TrainingMeasures
from server.engine.base import EngineStatus
from server.metrics import Metrics
from tests.unit.deploy.shipped import DEPLOY

DASHBOARD = json.loads((DEPLOY / "grafana" / "km-server.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """Every name that the server may tell, with its labels."""
    metrics = Metrics()
    metrics.request("GET", "/healthz", 200)
    metrics.answer("km", 1.0)
    metrics.first_token("km", 1.0)
    metrics.tokens("km", 1, 1)
    metrics.engine(_zero(EngineStatus))
    metrics.training(TrainingMeasures(0.0, {}, 1.0, 1.0, 0), 0)
    metrics.refused(queue=0, timeout=0, restarts=0)
    metrics.kept(0, {})
    metrics.clocks({"database": 0.0})
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _zero(kind: Any) -> Any:
    """A record of zeros, and of such records."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return kind(**{name: _zero(of) if dataclasses.is_dataclass(of) else 0 for name, of in fields.items()})


def _shown() -> list[tuple[str, str, str]]:
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


def _alerts() -> list[tuple[str, dict[str, Any]]]:
    return [(rule["alert"], rule) for group in RULES for rule in group["rules"]]


def _named(expression: str) -> set[str]:
    return set(re.findall(r"\bkm_[a-z_]+", expression))


def _check(title: str, expression: str, told: dict[str, set[str]]) -> set[str]:
    """Hold names, selectors and groupings to what is told; the labels that there are."""
    names = _named(expression)
    assert names <= set(told), title
    assert expression.count("(") == expression.count(")"), title
    for name, selector in re.findall(r"\b(km_[a-z_]+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)=~?\"", selector)) <= told[name], title
    labels = {label for name in names for label in told[name]}
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= labels, title
    return labels


def test_what_is_shown_is_told(told: dict[str, set[str]]) -> None:
    for title, expression, legend in _shown():
        assert _named(expression), title
        labels = _check(title, expression, told)
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels, title


def test_what_alerts_is_told(told: dict[str, set[str]]) -> None:
    for alert, rule in _alerts():
        _check(alert, rule["expr"], told)
        assert _named(rule["expr"]) or "up{" in rule["expr"], alert
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_gateway_engine_adapters_queue_and_training_are_all_shown(told: dict[str, set[str]]) -> None:
    shown = {_family(name) for _, expression, _ in _shown() for name in _named(expression)}
    assert {_family(name) for name in told if name.startswith("km_")} - shown == set(), "without a panel"


def _family(name: str) -> str:
    return re.sub(r"_(?:total|bucket|sum|count)$", "", name)


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
