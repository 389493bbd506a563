"""Commands of `km` for who runs the server: they work on its data directory, not over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_options import with_settings
from server.cli_shared import Json, fail, print_json, settings_of

if TYPE_CHECKING:
    from km_registry.doctor.findings import Finding
    from server.config import ServerSettings


@with_settings("data_dir", "database_url", "store_url")
def doctor(
    options: dict[str, Any],
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended; the server must be stopped.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Examine every record and file.

    Ends with 1 when something is wrong, or was not mended. With --json, one line for every finding.
    """
    settings = _existing(settings_of(**options))
    from server.doctor import examined, repaired

    with _refusals():
        if repair:
            left = _say(repaired(settings), as_json=as_json)
        else:
            left = _say(((finding, False) for finding in examined(settings)), as_json=as_json)
    if left:
        hint = "" if repair else " Those with a repair are mended by km doctor --repair."
        fail(f"{left} left to be seen to.{hint}", code=1)
    if not as_json:
        typer.echo("All is well.")


@with_settings("data_dir", "database_url", "store_url")
def backup(
    options: dict[str, Any],
    directory: Annotated[Path, typer.Argument(help="A directory that does not exist yet.")],
    as_json: Json = False,
) -> None:
    """Copy records, texts and KMs.

    Also while the server runs. What is deleted later stays in the copy.
    """
    settings = _existing(settings_of(**options))
    from km_registry.backup.backup import back_up

    with _refusals():
        made = back_up(settings, directory)
    if as_json:
        print_json(
            {
                "directory": str(directory),
                "documents": made.documents,
                "kms": made.kms,
                "size_bytes": made.size_bytes,
            }
        )
        return
    typer.echo(f"{directory}  {made.documents} documents  {made.kms} KMs  {made.size_bytes} bytes")


@with_settings("data_dir", "database_url", "store_url")
def restore(
    options: dict[str, Any],
    directory: Annotated[Path, typer.Argument(help="The backup.", exists=True, file_okay=False)],
    as_json: Json = False,
) -> None:
    """Put a backup back.

    Into a data directory and a database that are empty. Nothing is overwritten.
    """
    settings = settings_of(**options)
    from km_registry.backup.restore import restore as put_back
    from server.startup import data_directory

    with _refusals(), data_directory(settings.data_dir):
        found = put_back(settings, directory)
    if as_json:
        told = {"data_dir": str(settings.data_dir), "documents": found.documents, "kms": found.kms}
        print_json({**told, "made_at": found.made_at.isoformat()})
        return
    made = f"{found.made_at:%Y-%m-%d %H:%M}"
    typer.echo(f"{settings.data_dir}  {found.documents} documents  {found.kms} KMs  as of {made} UTC")


def _say(results: Iterator[tuple[Finding, bool]], *, as_json: bool) -> int:
    """Print each as it comes; how many are left."""
    left = 0
    for finding, mended in results:
        if mended:
            state = "mended"
        elif finding.repair is not None:
            state = "repair"
        else:
            state = "to do"
        left += not mended
        if as_json:
            told = {"subject": finding.subject, "problem": finding.problem, "remedy": finding.remedy}
            typer.echo(json.dumps({**told, "state": state}, ensure_ascii=False))
            continue
        typer.echo(f"{finding.subject}: {finding.problem} — {state}: {finding.remedy}")
    return left


def _existing(settings: ServerSettings) -> ServerSettings:
    """The settings, when they name a data directory that is there: none is made to be looked at."""
    if not settings.data_dir.is_dir():
        fail(f"There is no data directory {settings.data_dir}. Name the server's with --data-dir.")
    return settings


@contextmanager
def _refusals() -> Iterator[None]:
    """What cannot be done ends the command with one line."""
    from sqlalchemy.exc import SQLAlchemyError

    from km_registry.errors import KMError

    try:
        yield
    except KMError as error:
        fail(error, code=1)
    except SQLAlchemyError as error:
        fail(f"The database cannot be used: {str(error).splitlines()[0]}", code=1)
    except OSError as error:
        fail(f"{error.filename or 'The disk'}: {error.strerror}.", code=1)
