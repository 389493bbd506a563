"""Commands that are imported when they are called, so that `km --help` and completion answer at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


@dataclass(frozen=True, slots=True)
class Listed:
    """A command as the list shows it; `target` is module:function, or module:app for a group."""

    name: str
    target: str
    help: str
    panel: str

    def load(self) -> Any:
        """The command itself."""
        module, _, attribute = self.target.partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            alone.command(self.name)(found)
            found = alone
        else:
            found._add_completion = False
        return get_command(found)

    def stub(self) -> TyperCommand:
        """What stands for it in the list."""
        return TyperCommand(self.name, help=self.help, rich_help_panel=self.panel)


def group_of(listed: Sequence[Listed]) -> type[TyperGroup]:
    """A group with these commands."""

    class Lazy(TyperGroup):
        """Lists stubs; the command that is called takes its stub's place."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.commands.update({one.name: one.stub() for one in listed})
            self._unloaded = {one.name: one for one in listed}

        def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
            """The list, in its panels. Plain: to import what draws boxes takes longer than all the rest."""
            for panel in dict.fromkeys(one.panel for one in listed):
                with formatter.section(panel):
                    formatter.write_dl([(one.name, one.help) for one in listed if one.panel == panel])

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            """The command that the arguments name."""
            if (wanted := self._unloaded.pop(args[0], None)) is not None:
                self.commands[wanted.name] = wanted.load()
            return super().resolve_command(ctx, args)

    return Lazy
