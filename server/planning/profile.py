"""What was measured of an installation: how fast a replica answers, what a KM takes, how it is trained."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from server.planning.errors import PlanningError
from server.planning.models import Strict, checked

EMBEDDED = Path(__file__).with_name("profiles") / "embedded-cpu.toml"
_NONE: Mapping[str, Mapping[str, Any]] = {}

NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class ReplicaProfile(Strict):
    """One engine replica."""

    slots: int = Field(ge=1, description="KMs that one batch may mix (KM_MAX_LORAS)")
    places: int = Field(ge=1, description="KMs kept in memory (KM_MAX_CPU_LORAS)")
    running: int = Field(64, ge=1, description="answers computed at a time; more wait, in their slots")
    ongoing: int | None = Field(None, ge=1, description="requests sent to it at a time; more wait before it")
    tokens_per_s: dict[int, Positive] = Field(
        min_length=1,
        description="answers' tokens in a second, all together, by how many are computed at once",
    )
    prompt_tokens_per_s: dict[int, Positive] = Field(
        default_factory=dict, description="prompts' tokens in a second by length of the prompt; none: no time"
    )
    context_ms_per_1000_tokens: NotNegative = Field(
        0.0, description="what each 1000 tokens that an answer looks back on add to every step"
    )
    overhead_ms: NotNegative = Field(0.0, description="of every request, outside of the engine's computing")
    load_ms: NotNegative = Field(0.0, description="a KM from disk to memory")
    swap_ms: NotNegative = Field(0.0, description="a KM from memory to a slot")
    moves_stall: bool = Field(True, description="whether nothing is computed while a KM is moved")
    context_tokens: int = Field(4096, ge=1, description="longest prompt plus answer (KM_MAX_MODEL_LEN)")
    cache_tokens: int = Field(
        0, ge=0, description="prompts' tokens that are kept for the next (KM_KV_CACHE_GB)"
    )
    told_every_s: Positive | None = Field(
        None, description="how often gateways are told which KMs are in slots; none: they are not"
    )
    memory_gb: NotNegative = Field(0.0, description="without any KM")

    @field_validator("tokens_per_s")
    @classmethod
    def _from_one(cls, points: Mapping[int, float]) -> Mapping[int, float]:
        if 1 not in points:
            raise ValueError("it needs a point for one answer alone; add a line like 1 = 14.0")
        return points

    @field_validator("tokens_per_s", "prompt_tokens_per_s")
    @classmethod
    def _counted(cls, points: Mapping[int, float]) -> dict[int, float]:
        if any(count < 1 for count in points):
            raise ValueError("its points are counts from 1 on; write them like 1 = 14.0")
        return dict(sorted(points.items()))


class KMProfile(Strict):
    """One KM."""

    memory_mb: NotNegative = Field(0.0, description="in memory; as much again in a slot")
    disk_mb: NotNegative = 0.0


class TrainingProfile(Strict):
    """One trainer: a worker with its GPU, or its cores."""

    seconds_per_token: NotNegative = Field(0.0, description="of the document, from claimed to published")
    synthesis_tokens_per_token: NotNegative = Field(
        0.0, description="tokens that engine replicas write about each token of the document"
    )
    memory_gb: NotNegative = 0.0


class RetrievalProfile(Strict):
    """Retrieval of passages."""

    search_ms: NotNegative = 0.0
    passage_tokens: int = Field(64, ge=1)
    passages: int = Field(2, ge=1)


class Prices(Strict):
    """What an hour costs."""

    replica_hour: NotNegative = 0.0
    trainer_hour: NotNegative = 0.0
    currency: str = "USD"


class Profile(Strict):
    """All that a plan rests on."""

    name: str = "unnamed"
    replica: ReplicaProfile
    km: KMProfile = KMProfile()
    training: TrainingProfile = TrainingProfile()
    retrieval: RetrievalProfile = RetrievalProfile()
    prices: Prices = Prices()

    @field_validator("replica")
    @classmethod
    def _holds_its_slots(cls, replica: ReplicaProfile) -> ReplicaProfile:
        if replica.places < replica.slots:
            raise ValueError(f"{replica.places} places in memory are fewer than the {replica.slots} slots")
        return replica

    def with_slots(self, slots: int) -> Profile:
        """The same with so many slots, and places for them."""
        sizes = {"slots": slots, "places": max(slots, self.replica.places)}
        return self.model_copy(update={"replica": self.replica.model_copy(update=sizes)})


def fixed(
    service_s: float, *, slots: int, places: int, running: int, load_ms: float = 0, swap_ms: float = 0
) -> Profile:
    """A replica that takes the same time for every answer of one token, like an engine that is scripted.

    Raises:
        PlanningError: a time that is none.
    """
    if not service_s > 0:
        raise PlanningError(f"an answer takes {service_s} s: give more than 0")
    speeds = {1: 1 / service_s, running: running / service_s}
    sizes = {"slots": slots, "places": places, "running": running, "tokens_per_s": speeds}
    times = {"load_ms": load_ms, "swap_ms": swap_ms, "moves_stall": False}
    return checked(Profile, {"name": "fixed", "replica": sizes | times}, "the profile")


def read_profile(path: Path = EMBEDDED, changes: Mapping[str, Mapping[str, Any]] = _NONE) -> Profile:
    """The profile in a TOML file, with `changes` to its tables where they are not None.

    Raises:
        PlanningError: it cannot be read, is no TOML, or says something that a profile has not.
    """
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanningError(f"The profile {path} cannot be read ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise PlanningError(f"The profile {path} is not TOML: {error}.") from error
    for table, fields in changes.items():
        given = {name: value for name, value in fields.items() if value is not None}
        if given:
            told[table] = {**told.get(table, {}), **given}
    return checked(Profile, {"name": path.stem, **told}, f"The profile {path}")
