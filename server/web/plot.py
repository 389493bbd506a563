"""Where the curves of a training lie on its plot. Pure geometry: the template draws it as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

#: The plot's own units; it is scaled to where it stands.
WIDTH, HEIGHT = 380, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 32, 44, 10, 26
#: More points than a screen has columns are not seen.
_MOST_POINTS = 190


@dataclass(frozen=True, slots=True)
class Tick:
    """A number beside an axis, and where."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines as SVG takes them, axes with their ticks, and the last values in words."""

    loss: str
    recovered: str
    dots: tuple[tuple[float, float], ...]
    steps: tuple[Tick, ...]
    losses: tuple[Tick, ...]
    shares: tuple[Tick, ...]
    words: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def drawn(total_steps: int, loss: Mapping[int, float], recovered: Mapping[int, float]) -> Plot:
    """The plot of both curves over `total_steps`; axes alone while there is no point.

    The loss has the left axis, from 0 to a round number above its highest; `recovered` the right one, 0 to 1.
    """
    total = max(total_steps, *loss, *recovered, 1)
    top_loss = _round_up(max(loss.values(), default=1.0))
    # By definition the untrained KM has recovered nothing.
    shares = {0: 0.0, **recovered} if recovered else {}
    dots = tuple((_x(step, total), _y(share, 1.0)) for step, share in shares.items())
    thinned = list(loss.items())[:: math.ceil(len(loss) / _MOST_POINTS) or 1]
    if loss and thinned[-1][0] != max(loss):
        thinned.append((max(loss), loss[max(loss)]))
    return Plot(
        loss=_line([(_x(step, total), _y(value, top_loss)) for step, value in thinned]),
        recovered=_line(list(dots)),
        dots=dots,
        steps=tuple(Tick(_x(step, total), str(step)) for step in _marks(total)),
        losses=tuple(
            Tick(_y(top_loss * part / 4, top_loss), f"{top_loss * part / 4:g}") for part in range(0, 5, 2)
        ),
        shares=tuple(Tick(_y(part / 4, 1.0), f"{part * 25} %") for part in range(0, 5, 2)),
        words=_words(loss, recovered),
    )


def _words(loss: Mapping[int, float], recovered: Mapping[int, float]) -> str:
    if not loss:
        return "Loss and recovered over training steps; no step is done yet."
    step = max(loss)
    said = f"After {step} steps the loss is {loss[step]:.2f}"
    if recovered:
        said += f" and {recovered[max(recovered)] * 100:.0f} % is recovered"
    return said + "."


def _x(step: float, total: int) -> float:
    return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * step / total, 1)


def _y(value: float, top: float) -> float:
    share = min(max(value / top, 0.0), 1.0)
    return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share, 1)


def _line(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _marks(total: int) -> list[int]:
    """Up to five round step numbers, and the last one."""
    apart = int(_round_up(total / 4)) or 1
    marks = [step for step in range(0, total, apart) if total - step >= apart / 2]
    return [*marks, total]


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 5, 10) if factor * power >= value * 0.999)
