"""Where log lines and stray output go. In processes of their own: both change a whole process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOGGING = """
import logging, pathlib, sys, structlog
from server import logs
logs.configure(pathlib.Path(sys.argv[1]), sys.stderr)
structlog.get_logger("server.x").info("started", port=1)
structlog.get_logger("server.x").warning("worker died", code=9)
logging.getLogger("vllm").warning("noise")
logging.getLogger("mcp.server").info("called with a question")
logging.getLogger("uvicorn").error("broken")
"""
OUTPUT = """
import os, pathlib, subprocess, sys
from server import logs
with logs.diverted_output(pathlib.Path(sys.argv[1]) / "engine.log") as (out, err):
    print("from python")
    sys.stdout.flush()
    os.write(2, b"from C\\n")
    subprocess.run(["echo", "from a child"])
    print("for the user", file=out)
print("afterwards")
"""


def run(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, directory], capture_output=True, text=True, check=True)


def test_all_is_kept_and_what_matters_is_shown(tmp_path: Path) -> None:
    done = run(LOGGING, tmp_path)

    kept = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    assert [entry["event"] for entry in kept] == ["started", "worker died", "noise", "broken"]
    assert (kept[0]["port"], kept[0]["level"], kept[0]["logger"]) == (1, "info", "server.x")
    shown = done.stderr.splitlines()
    assert len(shown) == 2
    assert "worker died" in shown[0]
    assert "code=9" in shown[0]
    assert "broken" in shown[1]


def test_stray_output_is_kept_from_the_user(tmp_path: Path) -> None:
    done = run(OUTPUT, tmp_path)

    assert done.stdout == "for the user\nafterwards\n"
    assert done.stderr == ""
    kept = (tmp_path / "engine.log").read_text()
    assert kept.splitlines() == ["from python", "from C", "from a child"]

    run(OUTPUT, tmp_path)
    assert (tmp_path / "engine.log.1").read_text() == kept
    assert (tmp_path / "engine.log").read_text() == kept
