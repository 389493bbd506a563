"""Commands of `km` that list, show and delete documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from server.cli_shared import DocumentId, Json, connected, fail, print_json


def list_documents(as_json: Json = False) -> None:
    """List your documents, newest first.

    With how far their training is, and how much of what the context tells their KM tells.
    """
    with connected() as client:
        found = list(client.all_documents())
    if as_json:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("document", "version", "training", "recovered", "bytes", "uploaded", "title", box=None)
    for one in found:
        table.add_row(
            one["id"],
            _version(one),
            one["progress"],
            number(one["recovered"]),
            str(one["size_bytes"]),
            _moment(one["created_at"]),
            one["title"],
        )
    Console().print(table, markup=False)


def show(document: DocumentId, as_json: Json = False) -> None:
    """Show a document, its training, its KM.

    With its versions and the recipe of its training.
    """
    with connected() as client:
        told = client.document(document)
    if as_json:
        print_json(told)
        return
    job, km = told["job"], told["km"]
    changed = {name: value for name, value in told["recipe"].items() if value is not None}
    lines = [f"{document}  {told['document']['title']}"]
    for one in told["versions"]:
        made = _moment(one["created_at"])
        lines.append(f"version {one['version']}  {made}  {one['size_bytes']} bytes  {one['title']}")
    lines.append(f"training  version {job['version']}  {job['progress']}")
    if job.get("waits_for"):
        lines.append(f"waits for {job['waits_for']}")
    if job["error"]:
        lines.append(f"error  {job['error']}")
    if km:
        recovered = number(km["metrics"].get("recovered"))
        lines.append(f"KM {km['id']}  version {km['version']}  recovered {recovered}")
    lines.append(f"recipe {json.dumps(changed)}")
    typer.echo("\n".join(lines))


def remove(
    document: DocumentId,
    km: Annotated[bool, typer.Option("--km", help="Its KM alone; the document stays.")] = False,
    version: Annotated[int | None, typer.Option(help="A former version alone.")] = None,
    as_json: Json = False,
) -> None:
    """Delete a document; prints the receipt.

    And everything that was made of it: its KM, composites, passages, synthetic text, targets.
    """
    if km and version is not None:
        fail("--km and --version are two things. Give one of them.")
    with connected() as client:
        receipt: Mapping[str, Any]
        if km:
            receipt = client.delete_km(document)
        elif version is not None:
            receipt = client.delete_version(document, version)
        else:
            receipt = client.delete(document)
    if as_json:
        print_json(receipt)
        return
    from rich.console import Console

    Console().print_json(data=receipt)


def number(value: float | None) -> str:
    """A measure to two places."""
    return "-" if value is None else f"{value:.2f}"


def _version(document: Mapping[str, Any]) -> str:
    """The newest version, and the KM's where that is another."""
    newest, known = document["version"], document["km_version"]
    return str(newest) if known in (None, newest) else f"{newest} (KM {known})"


def _moment(text: str) -> str:
    return text[:16].replace("T", " ")
