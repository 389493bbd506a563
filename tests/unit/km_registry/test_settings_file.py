"""Settings from a file: where it is looked for, what wins over it, what is refused; and the origins told."""

from __future__ import annotations

from pathlib import Path

import pytest

from km_registry.setting_origins import HIDDEN, Setting, settings_in_force
from km_registry.settings_file import SettingsFileError
from server.config import ServerSettings
from trainer_worker.config import TrainerSettings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("KM_PORT", "KM_DATA_DIR", "KM_REDIS_URL", "REDIS_URL", "KM_DATABASE_URL", "KM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "km.toml"
    path.write_text(
        'port = 7000\nlora_rank = 8\nredis_url = "redis://file"\n'
        '[generators.big]\nurl = "http://g/v1"\nmodel = "m"\nkey = "sk-secret"\n'
        "[trainer]\nthreads = 2\nlora_rank = 4\n"
    )
    monkeypatch.setenv("KM_CONFIG", str(path))
    return path


def test_a_file_is_read_and_the_environment_and_options_win(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ServerSettings()
    assert (read.port, read.lora_rank, read.redis_url) == (7000, 8, "redis://file")
    assert read.generators["big"].model == "m"
    monkeypatch.setenv("KM_PORT", "7001")
    monkeypatch.setenv("REDIS_URL", "redis://environment")
    read = ServerSettings()
    assert (read.port, read.redis_url) == (7001, "redis://environment")
    assert ServerSettings(port=7002).port == 7002


def test_what_only_workers_have_stands_in_their_table(file: Path) -> None:
    worker = TrainerSettings()
    assert (worker.threads, worker.lora_rank, worker.redis_url) == (2, 4, "redis://file")


def test_it_is_looked_for_where_configuration_lies(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KM_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert ServerSettings().port == 8321
    (tmp_path / "km-server").mkdir()
    file.rename(tmp_path / "km-server" / "config.toml")
    assert ServerSettings().port == 7000


@pytest.mark.parametrize(
    ("text", "settings", "says"),
    [
        ("prot = 1", ServerSettings, "sets prot, which is no setting"),
        ("[trainer]\nthread = 1", TrainerSettings, "sets thread, which is no setting"),
        ("port = ", ServerSettings, "is not TOML"),
        (b"\xff", ServerSettings, "cannot be read"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    file: Path, text: str | bytes, settings: type[ServerSettings], says: str
) -> None:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsFileError, match=says):
        settings()


def test_a_file_that_is_named_has_to_be_there(file: Path) -> None:
    file.unlink()
    with pytest.raises(SettingsFileError, match="There is no settings file"):
        ServerSettings()


def test_every_setting_tells_where_it_comes_from(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KM_DATABASE_URL", "postgresql://ada:secret@db/km")
    settings = ServerSettings(max_loras="3", generator_key="sk-secret")
    told = {one.name: one for one in settings_in_force(settings, ["max_loras", "generator_key"])}
    assert set(told) == set(ServerSettings.model_fields)
    assert told["port"].origin == f"file {file}"
    assert told["max_loras"] == Setting(
        "max_loras", "KM_MAX_LORAS", 3, "option --max-loras", 8, "KMs that one batch may mix"
    )
    assert told["database_url"].origin == "environment KM_DATABASE_URL"
    assert told["database_url"].value == f"postgresql://{HIDDEN}@db/km"
    assert told["host"].origin == "default"
    assert told["redis_url"].variable == "KM_REDIS_URL"
    assert "secret" not in str(told)
