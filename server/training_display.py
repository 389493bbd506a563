"""A training as a person watches it: a bar for each stage, or lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

#: Seconds between two lines of one stage where there is no terminal.
_LINE_INTERVAL_S = 10.0


class TrainingDisplay:
    """Shows progress events (stage, step, loss, seconds left) as they come. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[note]}"))
            self._bars = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}
        self._stage, self._said_at = "", 0.0

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def show(self, data: dict[str, Any]) -> None:
        """One progress event."""
        if self._bars:
            self._draw(self._bars, data)
            return
        now = time.monotonic()
        ended = 0 < data["total_steps"] == data["step"]
        if data["stage"] != self._stage or ended or now - self._said_at >= _LINE_INTERVAL_S:
            self._stage, self._said_at = data["stage"], now
            self._console.print(f"  {data['stage']:<12}{note(data)}", highlight=False)

    def _draw(self, bars: Progress, data: dict[str, Any]) -> None:
        stage, total = data["stage"], data["total_steps"]
        if stage not in self._tasks:
            for task in self._tasks.values():
                bars.update(task, total=1, completed=1)
            self._tasks[stage] = bars.add_task(stage, total=total or None, note="")
        bars.update(self._tasks[stage], completed=data["step"] if total else 0, note=note(data))


def note(data: dict[str, Any]) -> str:
    """Step, loss, seconds left and `recovered`, as far as the event knows them."""
    parts = []
    if data["total_steps"]:
        parts.append(f"{data['step']}/{data['total_steps']}")
    if "loss" in data:
        parts.append(f"loss {data['loss']:.3f}")
    if "seconds_left" in data:
        parts.append(f"{data['seconds_left']:.0f} s left")
    if "recovered" in data:
        parts.append(f"recovered {data['recovered']:.2f}")
    return "  ".join(parts)
