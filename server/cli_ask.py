"""The command `km ask`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_shared import DocumentId, Json, connected, fail, print_json

if TYPE_CHECKING:
    from server.client import KM
    from server.client.types import Answer

#: What --compare sets side by side, from nothing known of the document to all of it in the prompt.
COMPARED = ("base", "rag", "km", "km+rag", "icl")
_MODES = ("auto", *COMPARED)


def ask(
    document: DocumentId,
    question: Annotated[str, typer.Argument(help="The question.")],
    mode: Annotated[
        str,
        typer.Option(
            help="auto; km: the question only; rag: passages in context; km+rag; icl: document in context; "
            "base: neither.",
            autocompletion=lambda: list(_MODES),
        ),
    ] = "auto",
    compare: Annotated[
        bool, typer.Option("--compare", help="Ask in every mode and set the answers side by side.")
    ] = False,
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
    as_json: Json = False,
) -> None:
    """Ask a document.

    The answer goes to standard output, as it comes where that is a terminal.
    """
    given: dict[str, Any] = {"ke": ke, "k": k, "max_tokens": max_tokens}
    options = {name: value for name, value in given.items() if value is not None}
    if compare and (mode != "auto" or stream):
        fail("--compare asks in every mode, and whole. Leave --mode and --stream out.")
    with connected() as client:
        if compare:
            _compare(client, document, question, options, as_json=as_json)
            return
        options["mode"] = mode
        streamed = sys.stdout.isatty() if stream is None else stream
        answer = _answer(client, document, question, options, streamed=streamed and not as_json)
    if as_json:
        print_json(answer)
        return
    if not streamed:
        typer.echo(answer["answer"])
    if passages:
        _show_passages(answer)
    if answer.get("warning"):
        typer.echo(f"km: {answer['warning']}", err=True)


def _answer(client: KM, document: str, question: str, options: dict[str, Any], *, streamed: bool) -> Answer:
    if not streamed:
        return client.ask(document, question, **options)
    told = ""
    pieces = client.ask_stream(document, question, **options)
    for text in pieces:
        new = text if told else text.lstrip()
        told += new
        typer.echo(new, nl=False)
        sys.stdout.flush()
    typer.echo()
    return pieces.answer


def _show_passages(answer: Answer) -> None:
    typer.echo(f"\n{answer['mode']}: {answer['why']}")
    typer.echo(f"KE {answer['ke_name'] or 'none'}: {answer['why_ke']}")
    for passage in answer["passages"]:
        typer.echo(f"\n[{passage['start']}-{passage['end']}, score {passage['score']:.2f}]")
        typer.echo(passage["text"])


def _compare(client: KM, document: str, question: str, options: dict[str, Any], *, as_json: bool) -> None:
    found = [_in_mode(client, document, question, mode, options) for mode in COMPARED]
    if as_json:
        print_json(found)
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table("mode", "answer", "prompt tokens", "ms", box=None)
        for one in found:
            shown = one.get("answer", f"({one.get('error')})").strip()
            milliseconds = f"{one['milliseconds']:.0f}" if "milliseconds" in one else "-"
            table.add_row(one["mode"], shown, str(one.get("prompt_tokens", "-")), milliseconds)
        Console().print(table, markup=False)
    if not any("answer" in one for one in found):
        raise typer.Exit(1)


def _in_mode(client: KM, document: str, question: str, mode: str, options: dict[str, Any]) -> dict[str, Any]:
    """The answer in this mode, or why there is none: its KM is not trained, the document is too long."""
    from server.client import ClientError

    # How many passages is a question only where there are passages.
    wanted = {name: value for name, value in options.items() if name != "k" or "rag" in mode}
    try:
        return dict(client.ask(document, question, mode=mode, **wanted))
    except ClientError as error:
        if error.status not in (409, 422, 503):
            raise
        return {"mode": mode, "error": str(error), "code": error.code}
