"""Where curves lie: within the axes, in order, thinned."""

from __future__ import annotations

import math

from server.web import plot


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]


def test_an_empty_plot_has_axes() -> None:
    drawn = plot.drawn(0, {}, {})
    assert drawn.loss == drawn.recovered == ""
    assert drawn.steps
    assert [tick.label for tick in drawn.shares] == ["0 %", "50 %", "100 %"]


def test_curves_lie_within_the_axes() -> None:
    drawn = plot.drawn(200, {step: 5 * math.exp(-step / 50) for step in range(1, 201)}, {100: 0.4, 200: 1.2})
    for x, y in points(drawn.loss) + points(drawn.recovered):
        assert drawn.left <= x <= drawn.right
        assert drawn.top <= y <= drawn.bottom
    assert points(drawn.loss)[-1][0] == drawn.right
    # The untrained KM has recovered nothing.
    assert points(drawn.recovered)[0] == (drawn.left, drawn.bottom)


def test_a_falling_loss_goes_down_the_page() -> None:
    drawn = plot.drawn(10, {1: 4.0, 10: 1.0}, {})
    (_, first), (_, last) = points(drawn.loss)
    assert first < last
    assert [tick.label for tick in drawn.losses] == ["0", "2", "4"]


def test_thousands_of_points_are_thinned_and_the_last_is_kept() -> None:
    drawn = plot.drawn(5000, dict.fromkeys(range(1, 5000), 1.0), {})
    assert len(points(drawn.loss)) <= 260
    assert points(drawn.loss)[-1][0] == points(plot.drawn(5000, {4999: 1.0}, {}).loss)[0][0]


def test_steps_are_round_and_end_with_the_last() -> None:
    assert [tick.label for tick in plot.drawn(200, {}, {}).steps] == ["0", "50", "100", "150", "200"]
    assert [tick.label for tick in plot.drawn(87, {}, {}).steps] == ["0", "40", "87"]
    assert [tick.label for tick in plot.drawn(1, {}, {}).steps] == ["0", "1"]
