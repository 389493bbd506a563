"""What docs/clients.md shows runs as it stands, but for the address and the key."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path

import pytest

from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.types import Job
from server.config import ServerSettings
from server.engine.scripted import ScriptedEngine
from tests.support import stage_km
from tests.unit.server.conftest import Someone, WordTokenizer

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / "docs" / "clients.md").read_text(), re.M | re.S)
PYTHON = [code for language, code in BLOCKS if language == "python"]


class TrainingQueue(MemoryJobQueue):
    """A queue whose worker is done before anybody can look."""

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self._registry = registry

    def enqueue(self, job: Job) -> None:
        claimed = self._registry.claim(job.id)
        assert claimed is not None
        staged = stage_km(self._registry, self._registry.document_of(job.id), claimed)
        self._registry.publish(job.id, claimed.attempt, staged, {"recovered": 0.8})


@pytest.fixture
def queue(registry: Registry) -> MemoryJobQueue:
    return TrainingQueue(registry)


@pytest.fixture
def engine(tokenizer: WordTokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer, max_model_len=2000)


@pytest.fixture
def settings(settings: ServerSettings) -> ServerSettings:
    return settings.model_copy(update={"max_document_bytes": 50_000})


def _for(code: str, url: str, someone: Someone) -> str:
    return code.replace("http://127.0.0.1:8321", url).replace("km_…", someone.key)


def test_there_is_one_of_each() -> None:
    assert [language for language, _ in BLOCKS].count("bash") == 1
    for client in ("import KM", "import AsyncKM", "import OpenAI", "from mcp import Client"):
        assert sum(client in code for code in PYTHON) == 1


async def test_curl(url: str, ada: Someone, registry: Registry, tmp_path: Path) -> None:
    (script,) = [code for language, code in BLOCKS if language == "bash"]
    made = _for(script, url, ada).replace("@server/samples", f"@{ROOT / 'server' / 'samples'}")
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-euo", "pipefail", "-c", made], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "event: published" in done.stdout
    assert '"answer":' in done.stdout
    assert '"purged":' in done.stdout
    assert registry.list_documents(ada.principal) == []


@pytest.mark.parametrize("code", PYTHON, ids=["KM", "AsyncKM", "OpenAI", "MCP"])
async def test_python(
    code: str,
    url: str,
    ada: Someone,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    mcp = "from mcp" in code
    if mcp:
        await ada.upload()
    compiled = compile(_for(code, url, ada), "clients.md", "exec")
    await asyncio.to_thread(exec, compiled, {"__name__": "clients"})
    assert capsys.readouterr().out.strip()
    assert len(registry.list_documents(ada.principal)) == int(mcp)
