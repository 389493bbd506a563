"""The command `km config`: the settings in force, and the reference that is made of their definitions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from server.cli_options import with_settings
from server.cli_shared import Json, fail, print_json, settings_of

_HEAD = """\
# Settings

Made by `km config --reference` of the settings' definitions; do not edit.

A setting is given, in this order of precedence, by an option of `km serve` (`--max-loras 4`; secrets have
none), by an environment variable (`KM_MAX_LORAS=4`), or by a line of a TOML file (`max_loras = 4`): the one
that `--config` or `KM_CONFIG` names, else `~/.config/km-server/config.toml`. What only workers have stands in
its table `[trainer]`. `km config` shows what is in force, and where it comes from.
"""


@with_settings()
def config(
    options: dict[str, Any],
    as_json: Json = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print the reference of all settings, as Markdown.")
    ] = False,
) -> None:
    """Show the settings, and where each comes from.

    With the options of `km serve` it shows what they would do.
    """
    from km_registry.errors import KMError
    from km_registry.setting_origins import settings_in_force

    settings = settings_of(**options)
    try:
        server = [asdict(one) for one in settings_in_force(settings, options)]
    except KMError as error:
        fail(error)
    names = {one["name"] for one in server}
    trainer = [one for one in _trainers() if one["name"] not in names]
    if reference:
        typer.echo(reference_of(server, trainer), nl=False)
    elif as_json:
        print_json({"server": server, "trainer": trainer})
    else:
        _table(server, "")
        _table(trainer, "[trainer] ")


def reference_of(server: list[dict[str, Any]], trainer: list[dict[str, Any]]) -> str:
    """The reference as Markdown; it tells defaults, not what is in force."""
    told = [_HEAD]
    for heading, settings in (("The server and its workers", server), ("Workers only: `[trainer]`", trainer)):
        rows = [f"\n## {heading}\n\n| setting | default | |\n|---|---|---|\n"]
        for one in settings:
            default = "" if one["default"] in (None, "") else f"`{one['default']}`"
            what = one["description"].replace("|", "\\|")
            rows.append(f"| `{one['name']}`, `{one['variable']}` | {default} | {what} |\n")
        told.append("".join(rows))
    return "".join(told)


def _trainers() -> list[dict[str, Any]]:
    """The settings that only workers have, asked of the worker: server and trainer never meet."""
    asked = subprocess.run(
        [sys.executable, "-m", "trainer_worker", "--settings"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        fail(asked.stderr.strip().removeprefix("km worker: "))
    found: list[dict[str, Any]] = json.loads(asked.stdout)
    return found


def _table(settings: list[dict[str, Any]], prefix: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(f"{prefix}setting", "value", "from", box=None)
    for one in settings:
        value = one["value"]
        shown = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
        table.add_row(one["name"], shown, one["origin"])
    Console().print(table, markup=False)
