"""Plots: ticks, gaps, places of points, and tables that hold the same numbers."""

from __future__ import annotations

import re
from datetime import datetime
from itertools import pairwise

import pytest

from ttt.ui.dashboard import plots
from ttt.ui.dashboard.plots import DAY, HOUR, SAMPLES, TIME, Axis

END = 1_795_000_000.0
LOSS = Axis("Loss", "number", lambda value: f"{value:.2f}")


def lines(html: str) -> list[list[tuple[int, int]]]:
    found = re.findall(r'<polyline points="([^"]*)"', html)
    return [[tuple(map(int, point.split(","))) for point in line.split()] for line in found]  # type: ignore[misc]


def test_points_lie_where_their_values_are() -> None:
    html = plots.plot("Loss", [(0, 10.0), (50, 6.0), (100, 2.0)], SAMPLES, LOSS, zero=True)
    (line,) = lines(html)
    low, high = map(float, re.search(r'data-y="(\S+) (\S+) number"', html).groups())  # type: ignore[union-attr]
    assert [x for x, _ in line] == [0, 500, 1000]
    assert low == 0
    assert [high - (high - low) * y / 1000 for _, y in line] == pytest.approx([10, 6, 2], abs=high / 500)


def test_a_gap_in_time_interrupts_the_line() -> None:
    xs = [float(x) for x in [*range(10), *range(100, 110)]]
    html = plots.plot("Loss", [(x, 1.0 + x) for x in xs], TIME, LOSS, gap=plots.expected_gap(xs))
    assert [len(line) for line in lines(html)] == [10, 10]
    assert len(lines(plots.plot("Loss", [(x, 1.0 + x) for x in xs], TIME, LOSS))) == 1


def test_a_missing_value_interrupts_the_line() -> None:
    html = plots.plot("Loss", [(0, 1.0), (1, 2.0), (2, None), (3, 3.0), (4, 2.0)], SAMPLES, LOSS)
    assert [len(line) for line in lines(html)] == [2, 2]
    assert "No data yet" in plots.plot("Loss", [(0, None)], SAMPLES, LOSS)
    assert "No data yet" in plots.plot("Loss", [], SAMPLES, LOSS)


@pytest.mark.parametrize("curve", [[(5, 3.0)], [(0, 0.0), (1, 0.0)], [(7, 2.0), (7, 2.0)], [(0, -4.0), (1, -4.0)]])
@pytest.mark.parametrize("zero", [True, False])
def test_a_single_point_or_a_flat_line_is_drawn(curve: list[tuple[float, float]], zero: bool) -> None:
    (line,) = lines(plots.plot("Loss", curve, SAMPLES, LOSS, zero=zero))
    assert len(line) >= 2
    assert all(0 <= x <= 1002 and 0 <= y <= 1000 for x, y in line)


def test_after_a_roll_back_samples_go_back_and_stay_in_the_plot() -> None:
    (line,) = lines(plots.plot("Loss", [(0, 3.0), (100, 2.0), (40, 2.5), (60, 2.2)], SAMPLES, LOSS))
    assert [x for x, _ in line] == [0, 1000, 400, 600]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.0001, 0.00023), (1e6, 9e12), (-3, 2), (2.1, 2.2), (0, 30_000)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = plots.ticks(low, high, 4)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-9 * abs(low) <= tick <= high * (1 + 1e-9) for tick in found)
    steps = {f"{b - a:.6g}" for a, b in pairwise(found)}
    assert len(steps) == 1
    assert f"{float(steps.pop()):e}".split("e")[0].rstrip("0") in ("1.", "2.", "2.5", "5.")


def test_there_is_no_half_peer() -> None:
    html = plots.plot("Peers", [(0, 0.0), (1, 1.0)], TIME, Axis("Peers", "whole", str), zero=True)
    beside = html.split('class="ttt-y">')[1].split("</div>")[0]
    assert re.findall(r">([^<]+)</span>", beside) == ["0", "1"]


@pytest.mark.parametrize("span", [90, 600, 3 * HOUR, DAY, 9 * DAY, 100 * DAY, 3000 * DAY])
def test_times_have_a_few_labels_that_differ(span: float) -> None:
    marks = plots.time_ticks(1_795_000_000, 1_795_000_000 + span)
    labels = [label for _, label in marks]
    assert 1 <= len(marks) <= 9
    assert len(set(labels)) == len(labels)


def test_dates_are_formatted_without_what_windows_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, strftime("%-d") is an error: every plot that contains a midnight would fail."""

    class WindowsDatetime(datetime):
        def strftime(self, format: str) -> str:
            assert "%-" not in format
            return super().strftime(format)

        def __format__(self, format: str) -> str:
            return self.strftime(format)

    monkeypatch.setattr(plots, "datetime", WindowsDatetime)
    labels = {label for span in (DAY, 9 * DAY, 3000 * DAY) for _, label in plots.time_ticks(END, END + span)}
    assert {"19 Nov", "27 Nov"} <= labels


def test_numbers_in_few_digits() -> None:
    values = (None, 0, 0.00012, 0.5, 12.345, 1234, 4_100_000, 2.5e9)
    shown = ["–", "0", "1.20e-04", "0.5", "12.3", "1,234", "4.1 M", "2.5 G"]
    assert [plots.number(value) for value in values] == shown


def test_the_table_has_the_first_and_the_last_point_and_says_what_it_left_out() -> None:
    curve = [(float(i), 10.0 - i / 100) for i in range(300)]
    html = plots.curve_table("Loss over samples", curve, SAMPLES, LOSS, band=[(0.0, 9.0, 11.0)])
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>', html)
    assert len(rows) == plots.TABLE_ROWS
    assert rows[0] == ("0", "10.00", "9.00", "11.00")
    assert rows[-1] == ("299", "7.01", "–", "–")
    assert "40 of 300 points" in html
    assert "points, evenly" not in plots.curve_table("Loss", curve[:10], SAMPLES, LOSS)


def test_a_plot_is_described_to_those_who_do_not_see_it() -> None:
    html = plots.plot('Loss "over" samples', [(0, 10.0), (100, 2.0)], SAMPLES, LOSS)
    assert 'role="img"' in html
    assert (
        'aria-label="Loss &quot;over&quot; samples: from 10.00 at 0 to 2.00 at 100; lowest 2.00, highest 10.00."'
        in html
    )
