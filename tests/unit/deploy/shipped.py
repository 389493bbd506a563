"""Reading what is shipped: environments by the program's own settings, and the chart."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from km_registry.setting_origins import variable_of
from server.config import ServerSettings
from tests.unit.deploy.gotmpl import Templates
from trainer_worker.config import TrainerSettings

DEPLOY = Path(__file__).parents[3] / "deploy"
KNOWN = {
    variable_of(name, field)
    for settings in (ServerSettings, TrainerSettings)
    for name, field in settings.model_fields.items()
} | {"KM_CONFIG"}


def read_settings(
    environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> tuple[ServerSettings, TrainerSettings]:
    """What server and worker make of the environment, which names only settings that there are."""
    unknown = {name for name in environment if name.startswith("KM_")} - KNOWN
    assert not unknown, f"no settings: {unknown}"
    for name in [name for name in os.environ if name.startswith("KM_") or name == "REDIS_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KM_CONFIG", os.devnull)
    for name, value in environment.items():
        assert isinstance(value, str), f"{name} is no text: {value!r}"
        monkeypatch.setenv(name, value)
    return ServerSettings(), TrainerSettings()


def filled(text: str, variables: Mapping[str, str]) -> str:
    """A text with ${NAME}, ${NAME:-default} and ${NAME:?message} as compose fills them."""

    def value(match: re.Match[str]) -> str:
        name, sign, rest = match.groups()
        if variables.get(name):
            return variables[name]
        assert sign != ":?", f"{name}: {rest}"
        return rest or ""

    return re.sub(r"\$\{([A-Z_]+)(?:(:-|:\?)([^}]*))?\}", value, text)


class Chart:
    """A chart as `helm template km` renders it; RefusedError is what it refuses."""

    def __init__(self, directory: Path) -> None:
        self._files = sorted((directory / "templates").glob("*.yaml"))
        self._templates = Templates()
        self._templates.define((directory / "templates" / "_helpers.tpl").read_text())
        self.values: dict[str, Any] = yaml.safe_load((directory / "values.yaml").read_text())

    def rendered(self, **changes: Any) -> list[dict[str, Any]]:
        """Every object of the release `km`, with changes like `redis__enabled=False`."""
        values = self.changed(**changes)
        texts = (self._templates.rendered(one.read_text(), values) for one in self._files)
        return [found for text in texts for found in yaml.safe_load_all(text) if found]

    def changed(self, **changes: Any) -> dict[str, Any]:
        """The values with these changes; what is changed has to be there."""
        values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(self.values))
        for path, value in changes.items():
            *inner, last = path.split("__")
            place = values
            for name in inner:
                place = place[name]
            assert last in place, path
            place[last] = value
        return values
