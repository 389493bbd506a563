"""Commands of `km engine`: the engine's replicas on a Ray that servers share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_options import with_settings
from server.cli_shared import Json, fail, print_json, settings_of

if TYPE_CHECKING:
    from server.engine.ray_rollout import Found

app = typer.Typer(name="engine", help="Engine replicas on Ray: show, roll out.", no_args_is_help=True)

_SETTINGS = ("ray_address", "base_model", "data_dir")


@app.command()
@with_settings(*_SETTINGS)
def show(options: dict[str, Any], as_json: Json = False) -> None:
    """Show the replicas, and the settings that differ from those in force here."""
    from dataclasses import asdict

    from server.engine.ray_rollout import found
    from server.ray_composition import joined

    with _refusals(), joined(settings_of(**options)) as (config, cluster):
        there = found(config, cluster)
    if there is None:
        fail("No engine runs there. The first server that starts with KM_ENGINE=ray puts it there.", code=1)
    if as_json:
        print_json(asdict(there))
        return
    _say(there)
    for one in there.differing:
        typer.echo(one)


@app.command("roll-out")
@with_settings(*_SETTINGS)
def roll_out(
    options: dict[str, Any],
    stop_first: Annotated[
        bool,
        typer.Option("--stop-first", help="End a replica before its successor starts."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Replace the replicas by such with the settings in force here, and the code that is installed there.

    Answers go on meanwhile, and what a replica has begun it ends. Where there is no room for one more, give
    --stop-first. Interrupted, it goes on by itself.
    """
    from server.engine.ray_rollout import roll_out as begin
    from server.ray_composition import joined

    now: Found | None = None
    settings = settings_of(**options)
    if not settings.ray_deploy:
        fail(
            "These replicas are KubeRay's to replace (KM_RAY_DEPLOY=false). Change the RayService: it rolls "
            "that out."
        )
    with _refusals(), joined(settings, surge=not stop_first) as (config, cluster):
        for now in begin(config, cluster):
            if not as_json:
                _say(now)
    if as_json and now is not None:
        print_json({"state": now.state, "replicas": now.replicas})


def _say(there: Found) -> None:
    counts = ", ".join(f"{count} {state}" for state, count in sorted(there.replicas.items()))
    typer.echo(f"{there.state.lower()}: {counts or 'no replica'}")
    if there.message:
        typer.echo(f"  {there.message}")


@contextmanager
def _refusals() -> Iterator[None]:
    """What cannot be done ends the command with one line."""
    from km_registry.errors import BaseModelError
    from server.engine.base import EngineNotReachedError, EngineUnavailableError
    from server.startup import ServeError

    try:
        yield
    except (ServeError, BaseModelError, EngineNotReachedError) as error:
        fail(error)
    except EngineUnavailableError as error:
        fail(error, code=1)
