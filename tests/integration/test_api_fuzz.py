"""The server's own description, fuzzed over HTTP within a bounded budget."""

from __future__ import annotations

from pathlib import Path

from tests.api_fuzz import ApiFuzz
from tests.inprocess import served


def test_no_answer_breaks_what_the_description_promises(tmp_path: Path) -> None:
    with served(tmp_path / "data") as server:
        fuzz = ApiFuzz(server)
        fuzz.operations(examples=2)
        fuzz.chains(examples=20)
    assert max(fuzz.statuses) < 500
    assert fuzz.statuses[200] > 20
    assert fuzz.requests > 150
