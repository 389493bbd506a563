"""The settings in force, and where each comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from km_registry.settings_file import read_settings_of, settings_file

_PASSWORD = re.compile(r"(?<=://)[^/@]*(?=@)")
HIDDEN = "(hidden)"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name in files, its variable, what is in force (secrets hidden), and by what."""

    name: str
    variable: str
    value: Any
    origin: str
    default: Any
    description: str


def settings_in_force(
    settings: BaseSettings, options: Collection[str] = (), names: Collection[str] | None = None
) -> list[Setting]:
    """Every setting of the class, or those named, in its order. `options` were given on the command line."""
    told = read_settings_of(type(settings))
    values = settings.model_dump(mode="json")
    return [
        Setting(
            name=name,
            variable=variable_of(name, field),
            value=_shown(values[name], field),
            origin=_origin(name, field, options, told),
            default=None if field.default_factory is not None else _plain(field.get_default()),
            description=field.description or "",
        )
        for name, field in type(settings).model_fields.items()
        if names is None or name in names
    ]


def variable_of(name: str, field: FieldInfo) -> str:
    """The environment variable that sets it."""
    return _variables(name, field)[0]


def _variables(name: str, field: FieldInfo) -> list[str]:
    if isinstance(field.validation_alias, AliasChoices):
        return [str(one) for one in field.validation_alias.choices]
    return [f"KM_{name.upper()}"]


def _origin(name: str, field: FieldInfo, options: Collection[str], told: Collection[str]) -> str:
    if name in options:
        return f"option --{name.replace('_', '-')}"
    present = {variable.upper() for variable in os.environ}
    for variable in _variables(name, field):
        if variable in present:
            return f"environment {variable}"
    return f"file {settings_file()}" if name in told else "default"


def _shown(value: Any, field: FieldInfo) -> Any:
    if not field.repr:
        return HIDDEN if value else None
    return _PASSWORD.sub(HIDDEN, value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
