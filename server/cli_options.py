"""Options of commands that are made of settings: name, help and default stand in the settings alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from km_registry.setting_origins import variable_of
from server.config import ServerSettings

_Returned = TypeVar("_Returned")
_ALSO = {"train_concurrency": "--concurrency"}
_METAVARS = {"int": "NUMBER", "float": "NUMBER", "Path": "PATH"}


def with_settings(*names: str) -> Callable[[Callable[..., _Returned]], Callable[..., _Returned]]:
    """Give a command an option for each of these settings; without names for all of them.

    The command gets those that were given as `options`. Secrets have no option: command lines are seen by
    everybody on the machine.
    """
    fields = ServerSettings.model_fields
    wanted = [name for name in names or fields if fields[name].repr]

    def decorated(command: Callable[..., _Returned]) -> Callable[..., _Returned]:
        own = inspect.signature(command).parameters
        hints = get_type_hints(command, include_extras=True)
        mine = [own[name].replace(annotation=hints[name]) for name in own if name != "options"]
        made = [_parameter(name, fields[name]) for name in wanted]

        @wraps(command)
        def called(*arguments: Any, **given: Any) -> _Returned:
            options = {name: value for name in wanted if (value := given.pop(name, None)) is not None}
            return command(*arguments, **given, options=options)

        parameters = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in _without_clashes(mine, made)
        ]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        return called

    return decorated


def _without_clashes(
    mine: Sequence[inspect.Parameter], made: Sequence[inspect.Parameter]
) -> list[inspect.Parameter]:
    names = {one.name for one in mine}
    return [*mine, *(one for one in made if one.name not in names)]


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    default = field.get_default() if field.default_factory is None else None
    shown = "" if default in (None, "") else f"; {_shown(default)}"
    help_ = f"{field.description or ''} ({variable_of(name, field)}{shown})"
    if field.annotation is bool:
        option = typer.Option(f"{flag}/--no-{name.replace('_', '-')}", help=help_, rich_help_panel="Settings")
        kind: Any = bool | None
    else:
        flags = (flag, *([_ALSO[name]] if name in _ALSO else []))
        option = typer.Option(*flags, help=help_, metavar=_metavar(field), rich_help_panel="Settings")
        kind = str | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _shown(default: Any) -> str:
    return str(default)


def _metavar(field: FieldInfo) -> str:
    types = [one for one in (get_args(field.annotation) or (field.annotation,)) if one is not type(None)]
    if get_origin(field.annotation) is not None and all(isinstance(one, str) for one in types):
        return "|".join(types)
    first = types[0]
    if get_args(first) and all(isinstance(one, str) for one in get_args(first)):
        return "|".join(get_args(first))
    return _METAVARS.get(getattr(first, "__name__", ""), "TEXT")
