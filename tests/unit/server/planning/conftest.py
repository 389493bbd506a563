"""Profiles whose times can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.planning import fleet
from server.planning.profile import KMProfile, Prices, Profile, ReplicaProfile, TrainingProfile


def replica(**fields: Any) -> ReplicaProfile:
    """Two slots; ten tokens a second, however many answers there are."""
    return ReplicaProfile(**{"slots": 2, "places": 4, "tokens_per_s": {1: 10.0}, **fields})


def everything() -> Profile:
    """Everything takes some time and some memory, and costs something."""
    return Profile(
        name="test",
        replica=replica(
            tokens_per_s={1: 10.0, 4: 40.0},
            prompt_tokens_per_s={1: 1000.0},
            overhead_ms=50,
            load_ms=40,
            swap_ms=10,
            cache_tokens=4000,
            memory_gb=2.0,
        ),
        km=KMProfile(memory_mb=10, disk_mb=10),
        training=TrainingProfile(seconds_per_token=0.1, synthesis_tokens_per_token=1.0, memory_gb=3.0),
        prices=Prices(replica_hour=1.0, trainer_hour=2.0),
    )


@pytest.fixture(autouse=True, scope="module")
def _short_simulations() -> Iterator[None]:
    """Those that look for a fleet: as long as it takes to tell fleets apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "_REQUESTS", 500)
        yield


@pytest.fixture
def profile() -> Profile:
    """Everything takes some time and some memory, and costs something."""
    return everything()
