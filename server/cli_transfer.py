"""Commands of `km` that take KMs out of a server and put them into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli_shared import DocumentId, Json, connected, fail, print_json


def export(
    document: DocumentId,
    directory: Annotated[Path, typer.Argument(help="A directory that does not exist yet.")],
    text: Annotated[
        bool, typer.Option("--text", help="With the document's text, so that it can be imported elsewhere.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a document's KM into a directory.

    A PEFT adapter: PeftModel.from_pretrained(base, DIRECTORY) loads it. For owners.
    """
    if directory.exists():
        fail(f"{directory} exists. Name a directory that does not.")
    with connected() as client:
        try:
            client.export(document, directory, text=text)
        except OSError as error:
            fail(f"{directory} cannot be written ({error.strerror}).", code=1)
    files = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
    if as_json:
        print_json({"directory": str(directory), "files": files})
    else:
        typer.echo(f"{directory}  {len(files)} files  {sum(files.values())} bytes")


def import_km(
    directory: Annotated[
        Path, typer.Argument(help="What `km export --text` wrote.", exists=True, file_okay=False)
    ],
    title: Annotated[str | None, typer.Option(help="Title; as it was called there otherwise.")] = None,
    as_json: Json = False,
) -> None:
    """Take in a KM from another server.

    With its document; it answers at once, without a training. The base model has to be the same.
    """
    with connected() as client:
        try:
            found = client.import_km(directory, title=title)
        except OSError as error:
            fail(f"{directory} cannot be read ({error.strerror}).")
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['document']['id']}  {found['document']['title']}  {found['job']['state']}")
