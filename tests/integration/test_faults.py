"""A few of the fault runs of tests/faults, and what is left of a document once it is deleted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.checks import canaries_in
from tests.faults.disk import run_on_small_disk
from tests.faults.runs import FaultRuns
from tests.faults.stack import Stack, running
from tests.faults.world import RECIPE, World


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture(scope="module")
def runs(stack: Stack) -> FaultRuns:
    return FaultRuns(stack)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(4, id="child in training"),
        pytest.param(21, id="Redis in a deletion"),
        pytest.param(3, id="gateway in an upload"),
    ],
)
def test_nothing_is_lost_doubled_left_or_remembered(runs: FaultRuns, number: int) -> None:
    runs.run(number)
    assert runs.tally.problems == []
    assert runs.tally.kills.total() > 0


def test_no_byte_of_a_deleted_document_is_left(stack: Stack, runs: FaultRuns) -> None:
    """In its title, its name as a file, its versions, what was made of them and what was asked about it."""
    words = World(stack, random.Random("forgetting"))
    client = stack.client
    before = canaries_in(stack.data_dir)
    sent = {
        "title": f"On {words.canary()}",
        "recipe": RECIPE,
        "text": f"The {words.canary()} bell hangs here.",
    }
    document_id = client.post("/documents", json=sent).json()["document"]["id"]
    words.until(document_id, "published")
    files = {"file": (f"{words.canary()}.md", f"The {words.canary()} bell was moved in 1871.".encode())}
    changed = client.put(f"/documents/{document_id}", files=files)
    assert changed.status_code == 202, changed.text
    words.until(document_id, "published")
    for mode in ("km", "icl", "base"):
        for stream in (False, True):
            assert words.ask(document_id, mode=mode, stream=stream) == 200
    model = {"model": document_id, "prompt": f"What is {words.canary('asked')}?", "max_tokens": 4}
    assert client.post("/v1/completions", json=model).status_code == 200
    kept = {path: found for path, found in canaries_in(stack.data_dir).items() if before.get(path) != found}
    assert kept
    assert not [word for found in kept.values() for word in found if word.startswith(b"asked")]

    assert client.delete(f"/documents/{document_id}").status_code == 200

    assert canaries_in(stack.data_dir) == before
    assert client.get(f"/receipts/{document_id}").json()["purged"]["kms"] >= 1


def test_a_full_disk_is_a_clear_failure_that_leaves_nothing(tmp_path: Path) -> None:
    options = ("--operations=upload,publish,delete", "--stride=6")
    said = run_on_small_disk("tests.faults.disk_full", tmp_path, *options, timeout_s=120)
    assert said.count('"problems": []') == 3, said
