"""The result file and its table."""

from __future__ import annotations

import pytest

from mixquant_agents.bench.prefill.report import report, table
from mixquant_agents.bench.prefill.state import Run
from mixquant_agents.bench.prefill.stats import per_turn


def test_report_has_the_named_figures() -> None:
    row = {"exact_default": [12.0], "exact": [11.0], "uniform-fp8": [8.0], "mixquant-fp8": [7.0]}
    rounds = [{"cold_2048": row, "tpot_1": row}] * 3
    info = {"device": "G", "engines": {"exact": {"weight_bytes": 100}, "mixquant-fp8": {"weight_bytes": 142}}}
    found = report(info, [Run(list(row), {}, rounds)])
    assert found["ms"]["cold_2048"]["exact"] == 11.0
    assert found["speedup"]["cold_2048"]["median"] == pytest.approx(11 / 7)
    assert found["speedup"]["cold_2048"]["against_exact_default"]["low95"] == pytest.approx(12 / 7)
    assert found["tpot_ratio"] == {"1": pytest.approx(7 / 11, abs=1e-4)}
    assert found["weights_ratio"] == 1.42
    assert "cold_2048" in table(found)


def test_report_joins_columns_of_several_groups() -> None:
    first = Run(["exact", "mixquant-fp8"], {}, [{"cold_64": {"exact": [4.0], "mixquant-fp8": [2.0]}}] * 3)
    later = Run(
        ["exact_default", "mixquant-fp8"], {}, [{"cold_64": {"exact_default": [9.0], "mixquant-fp8": [3.0]}}] * 3
    )
    found = report({}, [first, later])
    assert found["ms"]["cold_64"] == {"exact_default": 9.0, "exact": 4.0, "mixquant-fp8": 2.0}
    gain = found["speedup"]["cold_64"]
    assert gain["median"] == pytest.approx(2.0)
    assert gain["against_exact_default"]["median"] == pytest.approx(3.0)  # of the group in which both ran
    assert found["rounds"] == {"exact, mixquant-fp8": 3, "exact_default, mixquant-fp8": 3}
    assert "uniform" not in table(found)


def test_report_counts_each_turn_of_a_round() -> None:
    rounds = [
        {"cold_64": {"exact": [2.0, 2.2, 2.1, 4.0, 4.4, 4.2], "mixquant-fp8": [1.0, 1.1, 1.05, 2.0, 2.2, 2.1]}}
    ] * 2
    assert per_turn(rounds, "cold_64", "exact", 2) == [2.1, 4.2, 2.1, 4.2]
    found = report({}, [Run(["exact", "mixquant-fp8"], {"cold_64": 2}, rounds)])["speedup"]["cold_64"]
    assert found["pairs"] == 4
    assert found["low95"] == pytest.approx(2.0)


@pytest.mark.parametrize("separate", [True, False])
def test_report_has_nested_weights_beside_separate_ones_or_alone(separate: bool) -> None:
    row = {"exact": [11.0], "mixquant-fp8": [7.0], "mixquant-fp8-nested": [6.6]}
    status = {"weight_bytes": 76, "start_seconds": 110.0, "plugin": {"gpu": {"rebuilt_weights": 144}}}
    engines = {
        "exact": {"weight_bytes": 100, "start_seconds": 60.0},
        "mixquant-fp8": {"weight_bytes": 142, "start_seconds": 100.0},
        "mixquant-fp8-nested": status,
    }
    if not separate:
        del row["mixquant-fp8"], engines["mixquant-fp8"]
    run = Run(list(row), {}, [{"cold_2048": row, "tpot_1": row}] * 3)
    result = report({"engines": engines}, [run])
    assert result["nested"] == {
        "weights_ratio": 0.76,
        "tpot_ratio": {"1": pytest.approx(6.6 / 11, abs=1e-4)},
        "speedup": {"cold_2048": {"ratio": pytest.approx(11 / 6.6), "low95": pytest.approx(11 / 6.6)}},
        "start_over_separate": 1.1 if separate else None,
        "rebuilt_weights": 144,
    }
    gain = result["speedup"]["cold_2048"]
    assert (gain["nested"] if separate else gain)["column"] == "mixquant-fp8-nested"
    if separate:
        assert gain["median"] == pytest.approx(11 / 7)
        assert gain["nested"]["against_separate"]["median"] == pytest.approx(7 / 6.6)
    assert "mixquant-fp8-nested" in table(result)
