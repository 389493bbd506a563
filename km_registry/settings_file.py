"""Settings from a file: TOML, named by KM_CONFIG, or where such a file is looked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from km_registry.errors import KMError

VARIABLE = "KM_CONFIG"


class SettingsFileError(KMError):
    """The settings file cannot be used."""


def settings_file() -> Path | None:
    """The file in force: what KM_CONFIG names, else ~/.config/km-server/config.toml if there is one.

    SettingsFileError when KM_CONFIG names none that is there.
    """
    if named := os.environ.get(VARIABLE):
        path = Path(named).expanduser()
        if not path.exists():
            raise SettingsFileError(f"There is no settings file {path}. Correct --config or {VARIABLE}.")
        return path
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = Path(base).expanduser() / "km-server" / "config.toml"
    return path if path.exists() else None


def read_settings(section: str | None, known: set[str], *, strict: bool) -> dict[str, Any]:
    """What the file says of the settings `known`: at its top, and in its table `section`, which wins.

    A name that is not known is refused in the section, and, if `strict`, at the top: it would be a setting
    that has no effect. Tables are other programs' sections, unless they are known. SettingsFileError.
    """
    import tomllib

    path = settings_file()
    if path is None:
        return {}
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsFileError(f"The settings file {path} cannot be read ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsFileError(f"The settings file {path} is not TOML: {error}.") from error
    own = told.get(section, {}) if section else {}
    top = {name: value for name, value in told.items() if not _is_section(name, value, known)}
    unknown = sorted(set(own) - known) or (sorted(set(top) - known) if strict else [])
    if unknown:
        raise SettingsFileError(
            f"The settings file {path} sets {unknown[0]}, which is no setting. `km config` lists them all."
        )
    return {name: value for name, value in {**top, **own}.items() if name in known}


def _is_section(name: str, value: Any, known: set[str]) -> bool:
    return isinstance(value, dict) and name not in known


class FileSource(PydanticBaseSettingsSource):
    """Gives a settings class what the file says; its `file_section` and `file_strict` say how it is read."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Unused: all fields are read together."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """Every setting that the file has."""
        return read_settings_of(self.settings_cls)


def read_settings_of(settings: type[BaseSettings]) -> dict[str, Any]:
    """What the file says of this class's settings."""
    section: str | None = getattr(settings, "file_section", None)
    strict: bool = getattr(settings, "file_strict", False)
    return read_settings(section, set(settings.model_fields), strict=strict)
