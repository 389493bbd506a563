"""The command `km add`: files, folders and what comes by a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from server.cli_shared import Json, PresetOption, RecipeOption, connected, fail, recipe_for
from server.cli_training import followed

if TYPE_CHECKING:
    from server.client import KM
    from server.client.types import DocumentAndJob

#: What is taken from a folder; a file that is named is taken whatever it is called.
SUFFIXES = (".pdf", ".docx", ".html", ".htm", ".md", ".markdown", ".txt", ".text", ".rst")
_STDIN = Path("-")


def add(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Files, folders (with what is in them), or `-` for standard input.", metavar="PATH..."
        ),
    ],
    title: Annotated[str | None, typer.Option(help="Title of the document; the file's name else.")] = None,
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until every KM is trained.")] = False,
    as_json: Json = False,
) -> None:
    """Upload documents; KMs are trained of them.

    In the background. PDF, DOCX, HTML, Markdown or text. A file that is refused does not keep the others from
    being taken; then it ends with 1. With --json, one line for every document.
    """
    files = list(_files(paths))
    if title is not None and len(files) > 1:
        fail(f"--title names one document, and there are {len(files)}. Leave it out.")
    if not files:
        fail(f"There is no {', '.join(SUFFIXES)} file there.")
    with connected() as client:
        wanted = recipe_for(client, recipe, preset)
        added, failed = [], 0
        with _progress(len(files)) as advance:
            for file in files:
                taken = _upload(client, file, title, wanted)
                advance(file.name)
                if taken is None:
                    failed += 1
                else:
                    added.append(taken["document"]["id"])
                    _say(taken, as_json=as_json)
        if wait:
            failed += sum(followed(client, document, as_json=as_json) for document in added)
    if failed:
        raise typer.Exit(1)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            inside = (one for one in sorted(path.rglob("*")) if one.is_file() and not _hidden(one, path))
            yield from (one for one in inside if one.suffix.lower() in SUFFIXES)
        elif path == _STDIN or path.exists():
            yield path
        else:
            fail(f"There is no {path}. Give a file, a folder, or - for standard input.")


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _upload(
    client: KM, file: Path, title: str | None, recipe: dict[str, Any] | None
) -> DocumentAndJob | None:
    """The outcome; None when the file was refused, which is said. A server that is gone ends the command."""
    from server.client import ClientError

    try:
        if file == _STDIN:
            # As a file, so that it may be of any type.
            return client.add_content("stdin", sys.stdin.buffer.read(), title=title, recipe=recipe)
        return client.add_file(file, title=title, recipe=recipe)
    except OSError as error:
        typer.echo(f"km: {file} cannot be read ({error.strerror}). Correct its mode.", err=True)
    except ClientError as error:
        if error.status in (None, 401, 403):
            raise
        typer.echo(f"km: {file}: {error}", err=True)
    return None


def _say(added: DocumentAndJob, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(added, ensure_ascii=False))
    else:
        typer.echo(f"{added['document']['id']}  {added['document']['title']}  {added['job']['state']}")


class _Advance(Protocol):
    def __call__(self, name: str, /) -> None: ...


@contextmanager
def _progress(files: int) -> Iterator[_Advance]:
    """A bar, where there are several files and a terminal to show it on."""
    if files < 2 or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("uploading", total=files)
        yield lambda name: bar.update(task, advance=1, description=name)
