"""Reading what is shipped: environments by the program's own settings, and the chart's templates."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from km_registry.setting_origins import variable_of
from server.config import ServerSettings
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
    """A chart of the few constructs that ours uses; any other one fails. There is no helm to ask here."""

    def __init__(self, directory: Path) -> None:
        self._templates = sorted((directory / "templates").glob("*.yaml"))
        self.values: dict[str, Any] = yaml.safe_load((directory / "values.yaml").read_text())
        helpers = (directory / "templates" / "_helpers.tpl").read_text()
        defined = re.findall(r'\{\{- define "([^"]+)" -\}\}\n(.*?)\n\{\{- end \}\}', helpers, re.DOTALL)
        self._defined: dict[str, str] = dict(defined)

    def rendered(self, **changes: Any) -> list[dict[str, Any]]:
        """Every object of the release `km`, with changes like `redis__enabled=False`."""
        values = yaml.safe_load(yaml.safe_dump(self.values))
        for path, value in changes.items():
            *inner, last = path.split("__")
            place = values
            for name in inner:
                place = place[name]
            assert last in place, path
            place[last] = value
        texts = ("\n".join(self._lines(one.read_text().splitlines(), values)) for one in self._templates)
        return [found for text in texts for found in yaml.safe_load_all(text) if found]

    def _lines(self, lines: list[str], values: Any) -> Iterator[str]:
        shown = [True]
        for line in lines:
            if match := re.fullmatch(r"\s*\{\{- if (not )?(\S+) \}\}", line):
                shown.append(shown[-1] and bool(self._value(match[2], values)) != bool(match[1]))
            elif re.fullmatch(r"\s*\{\{- end \}\}", line):
                shown.pop()
            elif not shown[-1]:
                continue
            elif match := re.fullmatch(r"\s*\{\{- (.+) \| nindent (\d+) \}\}", line):
                block = self._block(match[1], values)
                yield "\n".join(" " * int(match[2]) + one for one in block.splitlines())
            else:
                yield re.sub(r"\{\{ (.+?) \}\}", lambda found: self._inline(found[1], values), line)
        assert shown == [True]

    def _block(self, expression: str, values: Any) -> str:
        if match := re.fullmatch(r'include "([^"]+)" \.', expression):
            return "\n".join(self._lines(self._defined[match[1]].splitlines(), values))
        match = re.fullmatch(r"toYaml (\S+)", expression)
        assert match, expression
        return str(yaml.safe_dump(self._value(match[1], values))).rstrip()

    def _inline(self, expression: str, values: Any) -> str:
        match = re.fullmatch(r'(?:required "([^"]+)" )?(\S+)( \| quote)?', expression)
        assert match, expression
        value = self._value(match[2], values)
        assert value or not match[1], match[1]
        return f'"{value}"' if match[3] else str(value)

    def _value(self, path: str, values: Any) -> Any:
        if path == ".Release.Name":
            return "km"
        assert path.startswith(".Values."), path
        for name in path.removeprefix(".Values.").split("."):
            values = values[name]
        return values
