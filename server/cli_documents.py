"""Commands of `km` that talk to a server about documents."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_shared import DocumentId, PresetOption, RecipeOption, connected, fail, recipe_for

if TYPE_CHECKING:
    from server.client import Client

DocumentFile = Annotated[
    Path, typer.Argument(help="A PDF, DOCX, HTML, Markdown or text file.", exists=True, dir_okay=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands, in the order in which a person needs them."""
    for name, command in (
        ("add", add),
        ("ls", list_documents),
        ("show", show),
        ("watch", watch),
        ("ask", ask),
        ("update", update),
        ("train", train),
        ("rm", remove),
    ):
        app.command(name)(command)


def add(
    file: DocumentFile,
    title: Annotated[str | None, typer.Option(help="Title; the file's name otherwise.")] = None,
    recipe: RecipeOption = None,
    preset: PresetOption = None,
) -> None:
    """Upload a document; its KM is trained in the background."""
    with connected() as client, _readable(file):
        added = client.add_file(file, title=title, recipe=recipe_for(client, recipe, preset))
    typer.echo(f"{added['document']['id']}  {added['document']['title']}  {added['job']['state']}")


def update(
    document: DocumentId,
    file: DocumentFile,
    title: Annotated[str | None, typer.Option(help="New title; as before otherwise.")] = None,
    recipe: RecipeOption = None,
    preset: PresetOption = None,
) -> None:
    """Give a document a new version; the former KM answers until the new one is trained."""
    with connected() as client, _readable(file):
        wanted = recipe_for(client, recipe, preset)
        changed = client.update_file(document, file, title=title, recipe=wanted)
    if changed["created"]:
        typer.echo(f"{document}  version {changed['document']['version']}  {changed['job']['state']}")
    else:
        typer.echo(f"{document} has this text already, as version {changed['document']['version']}.")


def train(document: DocumentId, recipe: RecipeOption = None, preset: PresetOption = None) -> None:
    """Train a document again: after a failure, or with another recipe."""
    with connected() as client:
        started = client.train(document, recipe=recipe_for(client, recipe, preset))
    typer.echo(f"{document}  version {started['job']['version']}  {started['job']['state']}")


def list_documents() -> None:
    """List your documents, newest first, with how far their training is."""
    from rich.console import Console
    from rich.table import Table

    table = Table("document", "version", "training", "recovered", "bytes", "uploaded", "title", box=None)
    with connected() as client:
        for one in client.all_documents():
            table.add_row(
                one["id"],
                _version(one),
                one["progress"],
                _number(one["recovered"]),
                str(one["size_bytes"]),
                _moment(one["created_at"]),
                one["title"],
            )
    Console().print(table, markup=False)


def show(document: DocumentId) -> None:
    """Show a document: its versions, its training, its KM and the recipe."""
    import json

    with connected() as client:
        told = client.document(document)
    job, km = told["job"], told["km"]
    changed = {name: value for name, value in told["recipe"].items() if value is not None}
    lines = [f"{document}  {told['document']['title']}"]
    for one in told["versions"]:
        made = _moment(one["created_at"])
        lines.append(f"version {one['version']}  {made}  {one['size_bytes']} bytes  {one['title']}")
    lines.append(f"training  version {job['version']}  {job['progress']}")
    if job["error"]:
        lines.append(f"error  {job['error']}")
    if km:
        recovered = _number(km["metrics"].get("recovered"))
        lines.append(f"KM {km['id']}  version {km['version']}  recovered {recovered}")
    lines.append(f"recipe {json.dumps(changed)}")
    typer.echo("\n".join(lines))


def ask(
    document: DocumentId,
    question: Annotated[str, typer.Argument(help="The question.")],
    mode: Annotated[
        str,
        typer.Option(
            help="auto; km: the question only; rag: passages in context; km+rag; icl: document in context; "
            "base: neither."
        ),
    ] = "auto",
    ke: Annotated[
        str | None, typer.Option(help="none, default, or a KE's name or id; the mode decides otherwise.")
    ] = None,
    k: Annotated[int | None, typer.Option(help="Passages in the prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    passages: Annotated[
        bool,
        typer.Option("--passages", help="Show the mode and the KE that answered, and the passages it read."),
    ] = False,
    stream: Annotated[
        bool | None, typer.Option(help="Show the answer as it comes; by default on a terminal.")
    ] = None,
) -> None:
    """Ask a document."""
    given: dict[str, Any] = {"mode": mode, "ke": ke, "k": k, "max_tokens": max_tokens}
    options = {name: value for name, value in given.items() if value is not None}
    with connected() as client:
        if sys.stdout.isatty() if stream is None else stream:
            answer = _told_as_it_comes(client, document, question, options)
        else:
            answer = client.answer(document, question, **options)
            typer.echo(answer["answer"])
    if passages:
        typer.echo(f"\n{answer['mode']}: {answer['why']}")
        typer.echo(f"KE {answer['ke_name'] or 'none'}: {answer['why_ke']}")
        for passage in answer["passages"]:
            typer.echo(f"\n[{passage['start']}-{passage['end']}, score {passage['score']:.2f}]")
            typer.echo(passage["text"])
    if answer.get("warning"):
        typer.echo(f"km: {answer['warning']}", err=True)


def _told_as_it_comes(
    client: Client, document: str, question: str, options: dict[str, Any]
) -> dict[str, Any]:
    told = ""
    for event in client.answer_stream(document, question, **options):
        if event.kind == "answer":
            typer.echo()
            return event.data
        new = event.data["text"] if told else event.data["text"].lstrip()
        told += new
        typer.echo(new, nl=False)
        sys.stdout.flush()
    from server.client import ClientError

    raise ClientError("The answer was cut short. Ask again.")


def remove(
    document: DocumentId,
    km: Annotated[bool, typer.Option("--km", help="Its KM alone; the document stays.")] = False,
    version: Annotated[int | None, typer.Option(help="A former version alone.")] = None,
) -> None:
    """Delete a document and everything that was made of it; prints the receipt."""
    from rich.console import Console

    if km and version is not None:
        fail("--km and --version are two things. Give one of them.")
    with connected() as client:
        if km:
            receipt = client.delete_km(document)
        elif version is not None:
            receipt = client.delete_version(document, version)
        else:
            receipt = client.delete(document)
        Console().print_json(data=receipt)


def watch(document: DocumentId) -> None:
    """Follow a document's training until it is over."""
    with connected() as client:
        for event in client.events(document):
            typer.echo(f"{event.kind:<10} {_phrase(event.data)}".rstrip())


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """A file that cannot be read ends the command."""
    try:
        yield
    except OSError as error:
        fail(f"{file} cannot be read ({error.strerror}). Correct its mode, or give another.")


def _version(document: dict[str, Any]) -> str:
    """The newest version, and the KM's where that is another."""
    newest, known = document["version"], document["km_version"]
    return str(newest) if known in (None, newest) else f"{newest} (KM {known})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _moment(text: str) -> str:
    return text[:16].replace("T", " ")


def _phrase(data: dict[str, Any]) -> str:
    inner = data.get("data", data)
    shown = inner if isinstance(inner, dict) else data
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in shown.items()
        if isinstance(value, str | int | float)
    )
