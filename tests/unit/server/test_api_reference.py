"""The reference of the API says what the API says."""

from __future__ import annotations

import re
from pathlib import Path

from server.api_reference import reference
from server.app import description

FILE = Path(__file__).parents[3] / "docs" / "api.md"


def test_it_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == reference(description()), "run: make docs"


def test_every_operation_and_every_object_is_in_it() -> None:
    told, described = FILE.read_text(encoding="utf-8"), description()
    for path, item in described["paths"].items():
        for method in item:
            assert f"### `{method.upper()} {path}`" in told
    headings = {heading.lower() for heading in re.findall(r"^### (\w[\w-]*)$", told, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", told)) <= headings
