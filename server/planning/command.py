"""The command `km plan`. Nothing heavy is imported before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from km_registry.json_data import finite
from server.cli_shared import Json, fail, print_json, print_table

if TYPE_CHECKING:
    from server.planning.fleet import Progress
    from server.planning.plan import Plan, Way
    from server.planning.profile import Profile
    from server.planning.workload import Workload

_NAMES = {"icl": "document in context", "rag": "retrieval"}


def plan(
    documents: Annotated[int, typer.Option(help="Documents that are asked.")] = 1000,
    zipf: Annotated[
        float, typer.Option(help="Exponent of their popularity; 0: all are asked as often.")
    ] = 1.0,
    questions_per_s: Annotated[float, typer.Option(help="Questions in a second.")] = 1.0,
    uploads_per_day: Annotated[float, typer.Option(help="Documents that are trained in a day.")] = 50.0,
    document_tokens: Annotated[int, typer.Option(help="Tokens of a document.")] = 3000,
    question_tokens: Annotated[int, typer.Option(help="Tokens of a question's prompt.")] = 32,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of an answer, on average.")] = 64,
    mix: Annotated[
        str, typer.Option(help="How often each mode is asked, like km=3,rag=1; base, icl, km, km+rag, rag.")
    ] = "km=1",
    gateways: Annotated[int, typer.Option(help="Gateways; each chooses replicas by itself.")] = 1,
    first_token: Annotated[
        float, typer.Option(help="Seconds that 95 of 100 first tokens must come within.")
    ] = 2.0,
    trained: Annotated[float, typer.Option(help="Seconds that 95 of 100 uploads must be trained within.")] = 4
    * 3600.0,
    slots: Annotated[int | None, typer.Option(help="Slots of a replica; else as in the profile.")] = None,
    replica_price: Annotated[
        float | None, typer.Option(help="Price of a replica's hour; else as in the profile.")
    ] = None,
    trainer_price: Annotated[
        float | None, typer.Option(help="Price of a trainer's hour; else as in the profile.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="TOML file with what was measured; the embedded model's on a CPU else."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Size a deployment for a workload.

    By simulating it: replicas, slots, memory, trainers, and what a million answers cost, from KMs, from the
    whole document in context, and from retrieval. docs/sizing.md says what is left out.
    """
    from server.planning.errors import PlanningError
    from server.planning.models import checked
    from server.planning.plan import planned
    from server.planning.workload import Workload

    fields = {
        "documents": documents,
        "zipf": zipf,
        "questions_per_s": questions_per_s,
        "uploads_per_day": uploads_per_day,
        "document_tokens": document_tokens,
        "question_tokens": question_tokens,
        "answer_tokens": answer_tokens,
        "mix": _mix(mix),
        "gateways": gateways,
        "first_token_p95_s": first_token,
        "trained_p95_s": trained,
    }
    try:
        workload = checked(Workload, fields, "The workload")
        measured = _profile(profile, slots, replica_price, trainer_price)
        with _progress(shown=not as_json) as progress:
            found = planned(measured, workload, seed=seed, progress=progress)
    except PlanningError as error:
        fail(error)
    if as_json:
        print_json(_told(found, workload, measured, seed))
    else:
        _table(found, workload, measured)


def _mix(given: str) -> dict[str, float]:
    """Modes and how often each is asked; the command ends when they are none."""
    mix: dict[str, float] = {}
    for part in given.split(","):
        mode, _, share = part.strip().partition("=")
        try:
            times = float(share or 1)
        except ValueError:
            fail(f"--mix {given}: {share} is no number. Write it like km=3,rag=1.")
        if mode in mix:
            fail(f"--mix {given}: {mode} stands there twice. Give it once.")
        mix[mode] = times
    return mix


def _profile(
    path: Path | None, slots: int | None, replica_price: float | None, trainer_price: float | None
) -> Profile:
    """The profile with what the options change."""
    from server.planning.profile import EMBEDDED, read_profile

    changes: dict[str, dict[str, Any]] = {
        "replica": {"slots": slots},
        "prices": {"replica_hour": replica_price, "trainer_hour": trainer_price},
    }
    return read_profile(path or EMBEDDED, changes)


@contextmanager
def _progress(*, shown: bool) -> Iterator[Progress]:
    """Tells what is being simulated, where a person looks on."""
    from rich.console import Console

    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda _: None
        return
    with console.status("simulating") as status:
        yield lambda what: status.update(f"simulating {what}")


def _told(found: Plan, workload: Workload, profile: Profile, seed: int) -> dict[str, Any]:
    """Everything, for programs; what would be infinite is null."""
    given = {"workload": workload.model_dump(), "profile": profile.model_dump(), "seed": seed}
    told: dict[str, Any] = finite({**asdict(found), **given})
    return told


def _table(found: Plan, workload: Workload, profile: Profile) -> None:
    columns = {
        "way": "way",
        "replicas": "replicas",
        "slots": "slots",
        "in slot": "hit_rate",
        "first token": "first_token",
        "busy": "busy",
        f"{profile.prices.currency}/million": "cost",
    }
    print_table([_row(way, workload) for way in found.ways], **columns)
    typer.echo()
    for line in _notes(found, workload, profile):
        typer.echo(line)


def _row(way: Way, workload: Workload) -> dict[str, str | None]:
    named: dict[str, str | None] = {"way": _NAMES.get(way.name, f"as asked: {', '.join(workload.mix)}")}
    if way.fleet is None:
        return named
    outcome = way.fleet.outcome
    with_kms = outcome.hit_rate is not None
    return {
        **named,
        "replicas": str(way.fleet.replicas),
        "slots": str(way.fleet.slots) if with_kms else None,
        "hit_rate": f"{outcome.hit_rate:.2f}" if outcome.hit_rate is not None else None,
        "first_token": f"{outcome.first_token_p50_s:.2f} s, {outcome.first_token_p95_s:.2f} s",
        "busy": f"{outcome.utilisation:.0%}",
        "cost": f"{way.cost_per_million:.2f}",
    }


def _notes(found: Plan, workload: Workload, profile: Profile) -> Iterator[str]:
    asked = found.ways[0].fleet
    assert asked is not None
    yield "In slot: questions that find their KM in one. First token: 50 and 95 of 100 come within."
    yield (
        f"Memory: {found.replica_memory_gb:.1f} GB a replica, {profile.training.memory_gb:.1f} GB a trainer; "
        f"disk for KMs: {found.disk_gb:.1f} GB."
    )
    if found.best_hit_rate is not None:
        yield f"In so many slots at most {found.best_hit_rate:.2f} of the questions can find their KM."
    trainers = found.trainers
    if trainers.count:
        yield (
            f"Trainers: {trainers.count}, busy {trainers.utilisation:.0%}; 95 of 100 uploads are trained "
            f"within {trainers.trained_p95_s / 3600:.1f} h. Of the cost {found.trainer_cost_per_million:.2f} "
            f"{profile.prices.currency} are theirs."
        )
    for way in found.ways:
        if way.fleet is None:
            yield f"{_NAMES[way.name].capitalize()}: {way.why}"
        elif not way.fleet.in_time:
            yield (
                f"{_NAMES[way.name].capitalize()}: so many replicas keep up, but to read a prompt that is "
                f"not cached takes longer than {workload.first_token_p95_s:g} s."
            )
    yield f"Measured times: {profile.name}."
