"""`km demo` as a new user runs it, with a training of seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import psutil
import pytest

#: A training of seconds, on what the document itself says.
RECIPE = {"kinds": ["repeat"], "steps": 8}
KEYS = {
    *("train_seconds", "recovered", "questions", "right_base", "right_icl", "right_km", "peak_rss_gb"),
    *("nll_base", "nll_icl", "nll_km", "prompt_tokens_icl", "prompt_tokens_km", "after_delete"),
    *("right_auto", "nll_auto", "prompt_tokens_auto", "auto", "auto_ke"),
    *("right_km+ke", "nll_km+ke", "base_unchanged"),
}


#: Every way of asking takes minutes for all questions of the sample.
EVERY = 7


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """The sample document with some of its questions."""
    samples = files("server") / "samples"
    path = tmp_path / "demo.md"
    path.write_text((samples / "demo.md").read_text(encoding="utf-8"), encoding="utf-8")
    lines = (samples / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    path.with_suffix(".jsonl").write_text("\n".join(lines[::EVERY]), encoding="utf-8")
    return path


@pytest.fixture
def environment(tmp_path: Path, embedded_model: Path) -> dict[str, str]:
    """A user's data directory, in which the base model is converted already."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("KM_")}
    found["KM_DATA_DIR"] = str(tmp_path / "data")
    if embedded_model.parent.name == "models":
        (tmp_path / "data").mkdir(mode=0o700)
        (tmp_path / "data" / "models").symlink_to(embedded_model.parent, target_is_directory=True)
    return found


def test_the_demo_tells_the_whole_story_and_leaves_nothing_running(
    document: Path, environment: dict[str, str]
) -> None:
    before = {process.pid for process in psutil.process_iter()}
    done = subprocess.run(
        [sys.executable, "-m", "server", "demo", "--document", str(document), "--recipe", json.dumps(RECIPE)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=570,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(figures) == KEYS
    assert figures["questions"] == 3
    assert figures["right_base"] == 0
    assert figures["right_icl"] > 0
    assert figures["nll_icl"] < figures["nll_base"]
    assert figures["prompt_tokens_km"] <= 60
    assert figures["prompt_tokens_icl"] > 600
    assert figures["prompt_tokens_km"] < figures["prompt_tokens_auto"] <= 220
    assert (figures["auto"], figures["auto_ke"]) == ("km+rag", "fairytale")
    assert figures["nll_auto"] < figures["nll_base"]
    assert figures["after_delete"] == "404"
    assert figures["base_unchanged"] is True
    assert 0 < figures["peak_rss_gb"] <= 8
    ours = [process for process in psutil.process_iter(["cmdline"]) if process.pid not in before]
    assert [one.info["cmdline"] for one in ours if "km-demo-" in " ".join(one.info["cmdline"] or [])] == []
