"""What was measured of an installation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.planning.errors import PlanningError
from server.planning.profile import fixed, read_profile

RESULTS = Path(__file__).parents[4] / "benchmarks" / "results"
LITTLE = "[replica]\nslots = 2\nplaces = 4\ntokens_per_s = { 1 = 10 }\n"


def test_the_embedded_models_is_what_the_benchmarks_keep() -> None:
    profile = read_profile()
    served = json.loads((RESULTS / "serve.json").read_text())
    assert profile.name == "embedded-cpu"
    # Runs differ; what is off by half was not carried over.
    assert profile.replica.load_ms == pytest.approx(served["load_ms"], rel=0.5)
    assert profile.replica.swap_ms == pytest.approx(served["swap_ms"], rel=0.5)
    assert profile.km.memory_mb == pytest.approx(served["rss_per_resident_km_mb"], rel=0.1)
    searched = json.loads((RESULTS / "retrieval.json").read_text())["passages_of_64"]["search_ms_p50"]
    assert profile.retrieval.search_ms == pytest.approx(searched, rel=0.5)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text(LITTLE)
    profile = read_profile(file, {"replica": {"slots": 3, "places": None}, "prices": {"trainer_hour": 2.0}})
    assert (profile.name, profile.replica.slots, profile.replica.places) == ("ours", 3, 4)
    assert (profile.prices.trainer_hour, profile.prices.replica_hour) == (2.0, 0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "replica: Field required"),
        ("[replica", "is not TOML"),
        ("\xff", "cannot be read"),
        (LITTLE + "slotz = 3\n", "sets replica.slotz, which is not known"),
        (LITTLE + "[prizes]\n", "sets prizes, which is not known"),
        (LITTLE.replace("1 = 10", "2 = 10"), "tokens_per_s: it needs a point for one answer alone"),
        (LITTLE.replace("1 = 10", "1 = 10, 0 = 3"), "counts from 1 on"),
        (LITTLE.replace("1 = 10", "1 = 0"), "greater than 0"),
        (LITTLE.replace("places = 4", "places = 1"), "1 places in memory are fewer than the 2 slots"),
        (LITTLE + "load_ms = inf\n", "load_ms"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "ours.toml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(PlanningError) as caught:
        read_profile(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanningError, match="cannot be read"):
        read_profile(tmp_path / "none.toml")


def test_answers_that_all_take_the_same_time() -> None:
    profile = fixed(0.5, slots=2, places=4, running=4, load_ms=3)
    assert profile.replica.tokens_per_s == {1: 2.0, 4: 8.0}
    assert (profile.replica.load_ms, profile.replica.swap_ms, profile.replica.moves_stall) == (3, 0, False)
    assert fixed(0.5, slots=2, places=4, running=1).replica.tokens_per_s == {1: 2.0}
    with pytest.raises(PlanningError, match="more than 0"):
        fixed(0, slots=2, places=4, running=4)


def test_more_slots_have_places() -> None:
    profile = fixed(1, slots=2, places=4, running=4).with_slots(8)
    assert (profile.replica.slots, profile.replica.places) == (8, 8)
