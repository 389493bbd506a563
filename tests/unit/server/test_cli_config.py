"""`km config`, options made of settings, and the reference of settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.cli_server import serve
from server.config import ServerSettings
from tests.unit.server.test_cli import km

REFERENCE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_what_is_in_force_and_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "km.toml"
    file.write_text('base_model = "from/file"\n[trainer]\nniceness = 3\n')
    monkeypatch.delenv("KM_BASE_MODEL", raising=False)
    monkeypatch.setenv("KM_CONFIG", "")  # which the option sets; put back at the end
    monkeypatch.setenv("KM_MAX_LORAS", "3")

    told = json.loads(km("--config", str(file), "config", "--json", "--port", "0").stdout)

    found = {one["name"]: (one["value"], one["origin"]) for one in told["server"] + told["trainer"]}
    assert found["base_model"] == ("from/file", f"file {file}")
    assert found["max_loras"] == (3, "environment KM_MAX_LORAS")
    assert found["port"] == (0, "option --port")
    assert found["host"] == ("127.0.0.1", "default")
    assert found["niceness"] == (3, f"file {file}")
    assert found["internal_key"][0] == "(hidden)"
    assert len(found) == len(told["server"]) + len(told["trainer"])


def test_a_setting_that_is_not_there_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "km.toml"
    monkeypatch.setenv("KM_CONFIG", str(file))
    file.write_text("prot = 1\n")
    done = km("serve")
    assert (done.exit_code, "prot" in done.stderr) == (2, True)
    file.write_text("[trainer]\nnicenes = 1\n")
    done = km("config")
    assert (done.exit_code, "nicenes" in done.stderr) == (2, True)


def test_serve_has_an_option_for_every_setting_but_secrets() -> None:
    secrets = {"internal_key", "generator_key", "session_key"}
    expected = set(ServerSettings.model_fields) - secrets | {"ready_file"}
    assert set(serve.__annotations__) == expected


def test_the_reference_is_current() -> None:
    made = km("config", "--reference").stdout
    assert REFERENCE.read_text(encoding="utf-8") == made, "run: make docs"
