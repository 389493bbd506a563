"""Measured points, and what lies between them."""

from __future__ import annotations

import pytest

from server.planning.curves import Curve


@pytest.mark.parametrize(("at", "value"), [(0, 5), (2, 5), (4, 10), (3, 7.5), (8, 30), (6, 20), (100, 30)])
def test_lines_between_points_and_none_beyond(at: float, value: float) -> None:
    assert Curve({8: 30, 2: 5, 4: 10})(at) == pytest.approx(value)


def test_the_largest() -> None:
    assert Curve({1: 5, 2: 9, 3: 7}).most == 9
