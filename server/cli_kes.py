"""Commands of `km ke`: which KEs a server has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli_shared import Json, connected, print_json

app = typer.Typer(name="ke", help="Knowledge Extractors: list, register, delete.", no_args_is_help=True)

KEId = Annotated[str, typer.Argument(help="The KE's id, ke_…")]


@app.command("ls")
def list_kes(as_json: Json = False) -> None:
    """List the KEs that answers can be given with."""
    with connected() as client:
        found = client.kes()
    if as_json:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("KE", "name", "version", "default", "fits", "rank", "trained", "base model", box=None)
    for one in found:
        table.add_row(
            one["id"],
            one["name"],
            str(one["version"]),
            _yes(one["is_default"]),
            _yes(one["fits"]),
            str(one["rank"]),
            one["trained"],
            one["base_model"],
        )
    Console().print(table, markup=False)


@app.command()
def add(
    directory: Annotated[Path, typer.Argument(help="Directory of the KE, on the server's machine.")],
    default: Annotated[bool, typer.Option("--default", help="Make it the default.")] = False,
    as_json: Json = False,
) -> None:
    """Register a KE; administrators only."""
    with connected() as client:
        added = client.register_ke(str(directory.absolute()), default=default)
    if as_json:
        print_json(added)
        return
    ke = added["ke"]
    known = "" if added["created"] else "  (registered already)"
    typer.echo(f"{ke['id']}  {ke['name']}  version {ke['version']}{known}")
    if added["warning"]:
        typer.echo(f"km: {added['warning']}", err=True)


@app.command("default")
def set_default(ke: KEId, as_json: Json = False) -> None:
    """Make a KE the default for its base model; administrators only."""
    with connected() as client:
        chosen = client.set_default_ke(ke)
    if as_json:
        print_json(chosen)
        return
    typer.echo(f"{chosen['id']}  {chosen['name']}  version {chosen['version']} is the default")


@app.command("rm")
def remove(ke: KEId, as_json: Json = False) -> None:
    """Delete a KE and every composite made of it; administrators only."""
    with connected() as client:
        deleted = client.delete_ke(ke)
    if as_json:
        print_json(deleted)
        return
    from rich.console import Console

    Console().print_json(data=deleted)


def _yes(value: bool) -> str:
    return "yes" if value else "-"
