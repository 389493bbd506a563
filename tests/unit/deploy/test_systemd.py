"""The unit and its settings file."""

from __future__ import annotations

import shlex

import pytest

from server.cli_server import serve
from server.config import ServerSettings
from tests.unit.deploy.shipped import DEPLOY, read_settings
from trainer_worker.config import TrainerSettings

UNIT = (DEPLOY / "systemd" / "km-server.service").read_text()


def _all(key: str) -> list[str]:
    lines = [line.partition("=") for line in UNIT.splitlines() if not line.startswith("#")]
    return [value for name, _, value in lines if name == key]


def test_its_command_and_environment_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = _all("ExecStart")
    program, subcommand, *options = shlex.split(command)
    assert (program.rsplit("/", 1)[-1], subcommand) == ("km", "serve")
    names = {option[2:].replace("-", "_") for option in options if option.startswith("--")}
    assert names <= set(serve.__annotations__)
    environment = dict(one.split("=", 1) for one in _all("Environment"))
    assert environment.pop("KM_CONFIG") == "/etc/km-server/config.toml"
    server, _ = read_settings(environment, monkeypatch)
    assert str(server.data_dir) == f"/var/lib/{_all('StateDirectory')[0]}"


def test_it_is_confined_and_stops_in_time() -> None:
    for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "DynamicUser"):
        assert _all(key) == ["yes"]
    assert _all("ProtectSystem") == ["strict"]
    # The server stops itself, or kills what does not, within 9 s.
    assert float(_all("TimeoutStopSec")[0]) > 10
    assert _all("RestartPreventExitStatus") == ["2"]


def test_the_settings_file_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    read_settings({}, monkeypatch)
    file = DEPLOY / "systemd" / "config.toml"
    monkeypatch.setenv("KM_CONFIG", str(file))
    assert ServerSettings().owner_documents == 1000
    assert TrainerSettings().niceness == 10


def test_what_is_commented_out_is_right_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    read_settings({}, monkeypatch)
    text = (DEPLOY / "systemd" / "config.toml").read_text()
    file = tmp_path_factory.mktemp("settings") / "config.toml"
    commented = ("# [", "# url", "# model", "# key")
    lines = [line[2:] if line.startswith(commented) else line for line in text.splitlines()]
    file.write_text("\n".join(lines))
    monkeypatch.setenv("KM_CONFIG", str(file))
    assert ServerSettings().generators["big"].model.startswith("Llama")
