"""Commands of `km` that have a document trained, and follow it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_shared import (
    DocumentId,
    Json,
    PresetOption,
    RecipeOption,
    connected,
    fail,
    print_json,
    recipe_for,
)

if TYPE_CHECKING:
    from server.client import KM

_OVER = {"published": 0, "failed": 1, "cancelled": 1}


def update(
    document: DocumentId,
    file: Annotated[
        Path, typer.Argument(help="A PDF, DOCX, HTML, Markdown or text file.", exists=True, dir_okay=False)
    ],
    title: Annotated[str | None, typer.Option(help="New title; as before otherwise.")] = None,
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    as_json: Json = False,
) -> None:
    """Give a document a new version.

    The former KM answers until the new one is trained.
    """
    with connected() as client, readable(file):
        wanted = recipe_for(client, recipe, preset)
        changed = client.update_file(document, file, title=title, recipe=wanted)
    if as_json:
        print_json(changed)
    elif changed["created"]:
        typer.echo(f"{document}  version {changed['document']['version']}  {changed['job']['state']}")
    else:
        typer.echo(f"{document} has this text already, as version {changed['document']['version']}.")


def train(
    document: DocumentId, recipe: RecipeOption = None, preset: PresetOption = None, as_json: Json = False
) -> None:
    """Train a document again.

    After a failure, or with another recipe.
    """
    with connected() as client:
        started = client.train(document, recipe=recipe_for(client, recipe, preset))
    if as_json:
        print_json(started)
    else:
        typer.echo(f"{document}  version {started['job']['version']}  {started['job']['state']}")


def cancel(document: DocumentId, as_json: Json = False) -> None:
    """End a document's training.

    The KM that there is answers on; `km train` begins again.
    """
    with connected() as client:
        ended = client.cancel(document)
    if as_json:
        print_json(ended)
    else:
        typer.echo(f"{document}  version {ended['job']['version']}  {ended['job']['state']}")


def watch(document: DocumentId, as_json: Json = False) -> None:
    """Follow a document's training.

    Until it is over. Ends with 1 when it ended without a KM. With --json, one line for every event.
    """
    with connected() as client:
        raise typer.Exit(followed(client, document, as_json=as_json))


def followed(client: KM, document: str, *, as_json: bool = False) -> int:
    """Show a training until it is over; the exit code."""
    code = 0
    if as_json:
        for event in client.events(document):
            typer.echo(json.dumps({"event": event.kind, **event.data}, ensure_ascii=False))
            code = _OVER.get(event.kind, code)
    elif sys.stdout.isatty():
        code = _shown_live(client, document)
    else:
        for event in client.events(document):
            typer.echo(f"{event.kind:<10} {_phrase(event.data)}".rstrip())
            code = _OVER.get(event.kind, code)
    return code


def _shown_live(client: KM, document: str) -> int:
    from rich.console import Console

    from server.training_display import TrainingDisplay

    code, console = 0, Console()
    with TrainingDisplay(console) as display:
        for event in client.events(document):
            if event.kind == "progress":
                display.show(event.data)
            else:
                console.print(f"{event.kind}  {_phrase(event.data)}".rstrip(), markup=False)
            code = _OVER.get(event.kind, code)
    return code


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """A file that cannot be read ends the command."""
    try:
        yield
    except OSError as error:
        fail(f"{file} cannot be read ({error.strerror}). Correct its mode, or give another.")


def _phrase(data: dict[str, Any]) -> str:
    inner = data.get("data", data)
    shown = inner if isinstance(inner, dict) else data
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in shown.items()
        if isinstance(value, str | int | float)
    )
