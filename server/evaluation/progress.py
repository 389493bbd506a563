"""How far an evaluation is, for people: bars in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

#: Seconds between two lines of one stage where there is no terminal.
_LINE_INTERVAL_S = 15.0


class Display:
    """One bar for each stage. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bars = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._totals: dict[str, int] = {}
        self._said_at = 0.0
        self._begun: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def begin(self, stage: str, total: int, done: int) -> None:
        """A stage of `total` things, of which `done` were done by earlier runs."""
        self._done[stage], self._totals[stage] = done, total
        if self._bars:
            self._tasks[stage] = self._bars.add_task(stage, total=total, completed=done, note="")
        else:
            self._console.print(f"  {stage}: {done} of {total} done", highlight=False)
        self._said_at = time.monotonic()
        self._begun[stage] = self._said_at, done

    def note(self, stage: str, note: str) -> None:
        """What happens at the moment."""
        if self._bars:
            self._bars.update(self._tasks[stage], note=escape(note))
        else:
            self._line(stage, note)

    def advance(self, stage: str, note: str = "") -> None:
        """One thing more is done."""
        self.reach(stage, self._done[stage] + 1, note)

    def reach(self, stage: str, done: int, note: str = "") -> None:
        """So many things are done by now."""
        self._done[stage] = done
        if self._bars:
            self._bars.update(self._tasks[stage], completed=self._done[stage], note=escape(note))
        else:
            self._line(stage, note, ended=self._done[stage] == self._totals[stage])

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f"  {escape(text)}", highlight=False, soft_wrap=True)

    def _line(self, stage: str, note: str, *, ended: bool = False) -> None:
        now = time.monotonic()
        if ended or now - self._said_at >= _LINE_INTERVAL_S:
            self._said_at = now
            done = f"{self._done[stage]} of {self._totals[stage]} done"
            text = f"  {stage}: {done}{self._left(stage, now)}  {note}".rstrip()
            self._console.print(escape(text), highlight=False, soft_wrap=True)

    def _left(self, stage: str, now: float) -> str:
        """How long the rest takes at the pace of this run; nothing before the first is done."""
        began, done_before = self._begun[stage]
        done = self._done[stage] - done_before
        left = self._totals[stage] - self._done[stage]
        if not done or not left:
            return ""
        minutes = (now - began) / done * left / 60
        return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
