"""The Dockerfiles, read line by line: there is no engine here to build them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.deploy.shapes import chart
from tests.unit.deploy.shipped import DEPLOY, read_settings

ROOT = DEPLOY.parent
FILES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, arguments), with continued lines joined and comments gone."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@pytest.fixture(params=FILES, ids=lambda file: file.name)
def image(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    return instructions(request.param)


def test_there_are_two() -> None:
    assert [file.name for file in FILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


def test_it_is_built_on_a_version_and_runs_as_nobody_special(image: list[tuple[str, str]]) -> None:
    bases = [rest.split()[0] for word, rest in image if word == "FROM"]
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    last = max(at for at, (word, _) in enumerate(image) if word == "FROM")
    final = dict(image[last:])
    assert final["USER"] == "10001:10001"
    assert (final["ENTRYPOINT"], final["CMD"]) == ('["km"]', '["serve"]')
    assert "/readyz" in final["HEALTHCHECK"]


def test_its_settings_are_settings(image: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    told = dict(pair.split("=", 1) for word, rest in image if word == "ENV" for pair in rest.split())
    server, _ = read_settings({name: told[name] for name in told if name.startswith("KM_")}, monkeypatch)
    final = dict(image)
    assert (server.host, str(server.port)) == ("0.0.0.0", final["EXPOSE"])
    assert str(server.data_dir) == final["VOLUME"] == told["HOME"]


def test_what_it_copies_is_sent_to_the_build(image: list[tuple[str, str]]) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    assert {"km_registry", "trainer_worker", "server", "pyproject.toml", "README.md", "LICENSE"} <= kept
    for word, rest in image:
        if word == "COPY" and not rest.startswith("--from"):
            source = rest.split()[0]
            assert source == "." or source in kept


def test_engine_replicas_find_ray_as_it_is_tested() -> None:
    """And as the chart has KubeRay told."""
    pinned = re.findall(r"^ray==(\S+)$", (DEPLOY / "requirements-dev.txt").read_text(), re.MULTILINE)
    told = [re.findall(r"^ARG KM_RAY=(\S+)$", file.read_text(), re.MULTILINE) for file in FILES]
    assert [pinned, pinned] == told
    assert chart().values["engine"]["ray"]["version"] == pinned[0]
