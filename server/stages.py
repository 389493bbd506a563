"""The lines that a starting server prints: one for each stage, with its seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

#: Where nobody watches a spinner, a long stage says every so many seconds that it goes on.
PLAIN_EVERY_S = 10.0


class Stage:
    """A stage that is going on. `detail` ends up on its line; `update` says how far it is."""

    def __init__(self, stages: Stages, name: str) -> None:
        self.detail = ""
        self._stages = stages
        self._name = name
        self._said = time.monotonic()

    def update(self, text: str) -> None:
        """Show how far the stage is. Callable from any thread."""
        if self._stages.live is None:
            if time.monotonic() - self._said >= PLAIN_EVERY_S:
                self._said = time.monotonic()
                self._stages.line(f"  {self._name}: {text}")
        else:
            self._stages.live.update(self._task, description=f"{self._name}  [dim]{text}")

    @contextmanager
    def running(self) -> Iterator[Stage]:
        """Show the stage until the block ends, then print its line; a block that fails prints none."""
        began = time.monotonic()
        live = self._stages.live
        if live is not None:
            self._task = live.add_task(self._name, total=None)
        try:
            yield self
        finally:
            if live is not None:
                live.remove_task(self._task)
        self._stages.done(self._name, self.detail, time.monotonic() - began)


class Stages:
    """Prints to a terminal with spinners, elsewhere plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.utf8 = not console.options.ascii_only
        self.live: Progress | None = None

    @contextmanager
    def shown(self) -> Iterator[Stages]:
        """Keep the spinners going while the block runs."""
        if not self._console.is_terminal:
            yield self
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as self.live:
            yield self
        self.live = None

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run one stage; several may run at once."""
        with Stage(self, name).running() as stage:
            yield stage

    def done(self, name: str, detail: str, seconds: float) -> None:
        """Print the line of a stage that is over."""
        mark = "✓" if self.utf8 else "-"
        self.line(f"{mark} {name:<15}{detail + '  ' if detail else ''}{seconds:.1f} s")

    def line(self, text: str) -> None:
        """Print one line, never wrapped."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
