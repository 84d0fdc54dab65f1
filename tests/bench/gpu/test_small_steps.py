"""What small steps' turns come to: over the faster of the exact engine's graph modes, turn by turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixquant_agents.bench.gpu.small_steps import ENGINES, arguments, summary
from mixquant_agents.bench.shapes import write_model


def turns(*totals: float) -> list[list[list[float]]]:
    return [[[0.1, 2.0, 3.0, total + stall] for stall in (0.0, 0.0, 50.0)] for total in totals]


def test_ratio_is_over_the_faster_graph_mode() -> None:
    case = summary({
        "mixquant-fp8": turns(10, 10, 12), "exact": turns(15, 15, 15), "exact-full": turns(12, 11, 12),
        "uniform-fp8": turns(9, 10, 12), "mixquant-fp8-pieces": turns(12, 12, 14),
    })  # fmt: skip
    assert case["best_exact"] == "exact-full"
    assert case["over_exact"]["median"] == pytest.approx(1.1)
    assert case["over"]["exact"]["median"] == pytest.approx(1.5)
    assert case["over"]["uniform-fp8"]["median"] == pytest.approx(1.0)
    assert case["ms"]["exact"] == [0.1, 2.0, 3.0, 15.0]


def test_engine_that_was_left_out_is_in_no_ratio() -> None:
    case = summary({"mixquant-fp8": turns(10, 10), "exact": turns(15, 15), "exact-full": turns(12, 11)})
    assert set(case["over"]) == {"exact", "exact-full"}


def test_only_the_graph_mode_tells_the_exact_engines_apart(tmp_path: Path) -> None:
    model = write_model("qwen3-tiny", tmp_path)
    exact, full = arguments("exact", model), arguments("exact-full", model)
    assert full["compilation_config"].pop("cudagraph_mode") == "FULL"
    assert exact == full
    assert len({arguments(name, model).get("quantization") for name in ENGINES}) == 3
