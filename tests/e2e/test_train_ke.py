"""`km train-ke` on real parts: a server of its own trains three KMs, then a KE learns beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from km_registry.artifacts import verify_ke

DOCUMENTS = [
    {
        "id": f"workshop-{number}",
        "title": f"Workshop {number}",
        "text": f"The workshop of {name} repairs {thing}. It opens at {hour} o'clock. {name} keeps the key.",
        "questions": [
            {"question": "Who keeps the key?", "answers": [name]},
            {"question": "What does the workshop repair?", "answers": [thing]},
        ],
    }
    for number, (name, thing, hour) in enumerate(
        [("Ada", "clocks", "six"), ("Bran", "sails", "nine"), ("Cleo", "lutes", "ten")]
    )
]


def test_from_questions_to_a_ke_and_not_twice(tmp_path: Path) -> None:
    data = tmp_path / "workshops.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    command = [sys.executable, "-m", "server", "train-ke", "--data", str(data), "--name", "workshops"]
    command += ["--recipe", json.dumps({"kinds": ["repeat"], "steps": 2, "evaluations": 1})]
    command += ["--ke", json.dumps({"steps": 2, "evaluations": 1, "heldout_documents": 1})]
    command += ["--out", str(tmp_path / "out"), "--licence", "CC0-1.0", "--about", "three workshops"]

    first = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, env=os.environ)
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)

    assert first.returncode == 0, first.stdout + first.stderr
    manifest = verify_ke(tmp_path / "out" / "ke-workshops")
    assert (manifest["trained"], manifest["licence"], manifest["data"]) == (
        "km+ke",
        "CC0-1.0",
        "three workshops",
    )
    assert set(manifest["metrics"]["best"]["nll"]) == {"closed", "passages"}
    assert json.loads(first.stdout) == {"directory": str(tmp_path / "out" / "ke-workshops"), **manifest}
    assert "km ke add" in first.stderr
    assert again.returncode == 1
    assert "is there already" in again.stdout
