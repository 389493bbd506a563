"""Damaged and harmful files: each is read or refused, within its limits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.intake.limits import IntakeLimits
from server.intake.media import Media, media_of
from server.intake.refusal import RefusedFileError
from tests.bad_files import HARMFUL, mutated
from tests.intake_mill import Mill, Outcome

#: A few for each parser; `make bench-reliability` takes 500.
COUNT = 12
LIMITS = IntakeLimits(
    file_bytes=200_000_000,
    text_bytes=2_000_000,
    pages=2000,
    unpacked_bytes=50_000_000,
    memory_bytes=768 * 2**20,
    seconds=6,
)


@pytest.fixture(scope="module")
def mill() -> Iterator[Mill]:
    with Mill(LIMITS) as made:
        yield made


def within_limits(outcome: Outcome) -> bool:
    """A second and a page more than the limits are the kernel's."""
    return outcome.peak_bytes <= LIMITS.memory_bytes and outcome.cpu_seconds <= LIMITS.seconds + 1


@pytest.mark.parametrize("kind", ["pdf", "docx", "html"])
def test_a_damaged_file_is_read_or_refused(mill: Mill, kind: str) -> None:
    for data in mutated(kind, COUNT, seed=0):
        outcome = mill.read(data, Media(kind))
        assert outcome.said, outcome
        assert set(outcome.said) in ({"text"}, {"refused", "message"})
        assert within_limits(outcome)


@pytest.mark.parametrize("what", HARMFUL)
def test_a_harmful_file_stays_within_its_limits(mill: Mill, what: str) -> None:
    data = HARMFUL[what]()
    try:
        media = media_of(data)
    except RefusedFileError:
        return
    if media is Media.TEXT:
        return  # not parsed; its size is the request's
    assert within_limits(mill.read(data, media)), what
