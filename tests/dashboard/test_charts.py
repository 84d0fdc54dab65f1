"""Charts escape foreign text, break at the unknown, and say what their axes are."""

from __future__ import annotations

from mixquant_agents.dashboard import formatting
from mixquant_agents.dashboard.charts import histogram, line_chart, nice_ceiling


def test_chart_escapes_and_breaks_at_the_unknown() -> None:
    chart = line_chart("<b>", ["<i>", "2", "3", "4"], [("<u>", "one", [1.0, None, 2.0, 3.0])], formatting.count)
    assert "<b>&lt;b&gt;</b>" in chart
    assert "<i>" not in chart
    assert "<u>" not in chart
    assert chart.count("<polyline") == 1
    assert chart.count("dot") == 1
    assert "nothing measured" in line_chart("x", [], [("", "one", [])], formatting.count)


def test_histogram_says_that_its_axis_is_logarithmic() -> None:
    bars = [(0.001, 0.25, 0.0), (0.01, 0.5, 0.5), (0.1, 0.25, 0.5)]
    chart = str(histogram("Decode", bars, ("A", "B"), formatting.duration)).replace("\u202f", " ")
    assert "logarithmic time axis" in chart
    assert [label in chart for label in ("<span>1.00 ms</span>", "<span>10.0 ms</span>", "<span>100 ms</span>")] == [
        True
    ] * 3
    assert "50% of turns" in chart
    assert "neither side" in histogram("Decode", [], ("A", "B"), formatting.duration)


def test_axis_ends_at_a_round_number() -> None:
    assert [nice_ceiling(value) for value in (0.0331, 0.05, 1.01, 7, 0)] == [0.05, 0.05, 2.0, 10.0, 1.0]
