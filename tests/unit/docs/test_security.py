"""docs/security.md names tests that exist, and one for every promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "security.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_test_that_is_named_exists() -> None:
    missing = [f"{path}::{name}" for path, name in NAMED.findall(TEXT) if name not in _functions(ROOT / path)]
    assert missing == []


def test_every_promise_names_a_test() -> None:
    promises = TEXT.split("## Promises")[1].split("\n## ")[0]
    without = [promise for promise in re.split(r"\n- ", promises)[1:] if not NAMED.search(promise)]
    assert without == []


def _functions(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    found = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
