"""What commands of `km` share. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from km_registry.recipe import RecipeLimits
    from server.client import KM, ClientError
    from server.config import ServerSettings

_FAILED, _USAGE_ERROR, _NO_SERVER = 1, 2, 3


def _document_ids(incomplete: str) -> list[tuple[str, str]]:
    """For completion: ids and titles, of a server that answers at once."""
    from server.client import KM, ClientError

    try:
        with KM(retries=0, timeout_s=2.0) as client:
            found = client.documents()["documents"]
    except ClientError:
        return []
    return [(one["id"], one["title"]) for one in found if one["id"].startswith(incomplete)]


DocumentId = Annotated[
    str, typer.Argument(help="The document's id, doc_…", autocompletion=_document_ids, metavar="DOC")
]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help='Training recipe as JSON, for example {"steps": 200}.')
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
PresetOption = Annotated[str | None, typer.Option("--preset", help="Recipe by name: default, fast, paper.")]


def recipe_fields(recipe: str | None, preset: str | None) -> dict[str, Any]:
    """The recipe that the two options ask for; the command ends when they are no recipe."""
    fields = json_fields("--recipe", recipe)
    if preset is not None and fields.setdefault("preset", preset) != preset:
        fail(f"--preset says {preset}, --recipe says {fields['preset']}. Give the preset once.")
    return fields


def json_fields(option: str, given: str | None) -> dict[str, Any]:
    """The JSON object that an option was given; the command ends when it is none."""
    import json

    try:
        fields = json.loads(given or "{}")
    except json.JSONDecodeError as error:
        fail(f'{option} is not JSON ({error}). Write it like {{"steps": 200}}.')
    if not isinstance(fields, dict):
        fail(f'{option} is not a JSON object. Write it like {{"steps": 200}}.')
    return fields


def check_recipe(fields: dict[str, Any], limits: RecipeLimits) -> None:
    """End the command unless the recipe can work: by the same function that the server refuses it with."""
    from km_registry.recipe import RecipeError, parse_recipe

    try:
        parse_recipe(fields, limits)
    except RecipeError as error:
        fail(error)


def recipe_for(client: KM, recipe: str | None, preset: str | None) -> dict[str, Any] | None:
    """The recipe that the options ask for, checked against the server's limits; None without options."""
    if recipe is None and preset is None:
        return None
    from km_registry.recipe import RecipeLimits

    fields = recipe_fields(recipe, preset)
    limits = client.recipes()["limits"]
    generators = frozenset(limits["generators"])
    check_recipe(fields, RecipeLimits(limits["rank"], limits["context_tokens"], generators))
    return fields


@contextmanager
def connected(*, retries: int = 2) -> Iterator[KM]:
    """A client of the server that KM_URL and KM_API_KEY name; its errors end the command."""
    import stamina.instrumentation

    from server.client import KM, ClientError

    # What is tried again is nobody's business here, and would be printed among the command's output.
    stamina.instrumentation.set_on_retry_hooks(())
    try:
        client = KM(retries=retries)
    except ClientError as error:
        fail(error)
    try:
        with client:
            yield client
    except ClientError as error:
        fail(error, code=exit_code_of(error))


def exit_code_of(error: ClientError) -> int:
    """Whether the server refused, or is not there."""
    return _NO_SERVER if error.unreachable else _FAILED


def settings_of(**options: Any) -> ServerSettings:
    """Settings from file and environment, with the options that were given on top; what is wrong ends the
    command."""
    from pydantic import ValidationError

    from km_registry.settings_file import SettingsFileError
    from server.config import ServerSettings

    try:
        return ServerSettings(**{name: value for name, value in options.items() if value is not None})
    except SettingsFileError as error:
        fail(error)
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper().removeprefix("KM_")
        fail(
            f"The setting KM_{name} is wrong: {first['msg']}. Correct the option, the variable or the "
            "settings file."
        )


def print_json(found: Any) -> None:
    """Print what the server answered, for programs."""
    import json

    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


def said(done: Mapping[str, Any], as_json: bool) -> None:
    """Of what has nothing to tell a person, tell a program what was done."""
    if as_json:
        print_json(done)


def print_table(found: Sequence[Mapping[str, Any]], /, **columns: str) -> None:
    """Print these fields of what was found, one line each; `columns` maps headings to fields."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*(heading.replace("_", " ") for heading in columns), box=None)
    for one in found:
        table.add_row(*(_cell(one.get(field)) for field in columns.values()))
    Console().print(table, markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    # A moment to the minute is enough for a person.
    return text[:16].replace("T", " ") if len(text) > 19 and text[10:11] == "T" and text[4] == "-" else text


def fail(problem: Exception | str, *, code: int = _USAGE_ERROR) -> NoReturn:
    """Say what was wrong and end with the code; 0 says it plainly."""
    typer.echo(f"km: {problem}" if code else str(problem), err=True)
    raise typer.Exit(code)
