"""`km ke`: what each command asks for, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.server.test_cli import FakeApi, api, km

__all__ = ["api"]  # the fixture

KE = {
    "id": "ke_1",
    "name": "answers",
    "version": 2,
    "is_default": True,
    "fits": False,
    "rank": 16,
    "trained": "km+ke",
    "base_model": "SmolLM2 [135M]",
}


def test_ls(api: FakeApi) -> None:
    api.replies_with("GET", "/kes", {"kes": [KE]})

    head, row = km("ke", "ls").output.splitlines()

    assert head.split() == ["KE", "name", "version", "default", "fits", "rank", "trained", "base", "model"]
    assert row.split() == ["ke_1", "answers", "2", "yes", "-", "16", "km+ke", "SmolLM2", "[135M]"]


def test_add(api: FakeApi, tmp_path: Path) -> None:
    api.replies_with("POST", "/kes", {"ke": KE, "created": True, "warning": "Beware."}, 201)

    done = km("ke", "add", str(tmp_path), "--default")

    assert api.requests[0][2] == {"directory": str(tmp_path), "default": True}
    assert done.stdout == "ke_1  answers  version 2\n"
    assert done.stderr == "km: Beware.\n"


def test_add_of_one_that_is_there(api: FakeApi, tmp_path: Path) -> None:
    api.replies_with("POST", "/kes", {"ke": KE, "created": False, "warning": None})

    assert km("ke", "add", str(tmp_path)).output == "ke_1  answers  version 2  (registered already)\n"


def test_default(api: FakeApi) -> None:
    api.replies_with("PUT", "/kes/ke_1/default", KE)

    assert km("ke", "default", "ke_1").output == "ke_1  answers  version 2 is the default\n"


def test_rm(api: FakeApi) -> None:
    api.replies_with("DELETE", "/kes/ke_1", {"ke_id": "ke_1", "purged": {"composites": 1}})

    assert json.loads(km("ke", "rm", "ke_1").output) == {"ke_id": "ke_1", "purged": {"composites": 1}}


def test_ask_with_a_ke(api: FakeApi) -> None:
    api.replies_with("POST", "/answer", {"answer": "At six."})

    km("ask", "doc_1", "When?", "--ke", "answers")

    assert api.requests[0][2] == {
        "document_id": "doc_1",
        "question": "When?",
        "mode": "auto",
        "ke": "answers",
    }
