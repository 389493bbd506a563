"""Measured points, and what lies between them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping


class Curve:
    """Straight lines between points; beyond the first and the last as they are."""

    def __init__(self, points: Mapping[int, float]) -> None:
        """At least one point."""
        self._at = sorted(points)
        self._values = [points[at] for at in self._at]

    def __call__(self, at: float) -> float:
        """The value there."""
        index = bisect_left(self._at, at)
        if index == 0:
            return self._values[0]
        if index == len(self._at):
            return self._values[-1]
        left, right = self._at[index - 1], self._at[index]
        share = (at - left) / (right - left)
        return self._values[index - 1] * (1 - share) + self._values[index] * share

    @property
    def most(self) -> float:
        """The largest value."""
        return max(self._values)
