"""The roofline, against the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixquant_agents.bench.prefill import roofline

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_roofline_hits_held_out_sizes(gpu: str) -> None:
    ms = json.loads((RESULTS / f"prefill-{gpu}.json").read_text())["ms"]
    shape, kept = roofline.ModelShape.of("qwen3-8b"), roofline.FITS[gpu]
    found = roofline.fit(ms, shape, gpu)
    assert found.attention == pytest.approx(kept.attention, rel=0.01)
    assert found.per_token == pytest.approx(kept.per_token, rel=0.01)
    assert found.fixed == pytest.approx(kept.fixed, rel=0.01)
    assert found.elementwise == pytest.approx(kept.elementwise, rel=0.01)
    errors = [abs(e) for row in roofline.held_out_errors(ms, shape, found).values() for e in row.values()]
    assert len(errors) == 10
    assert max(errors) < {"h100": 0.05, "h200": 0.06}[gpu]


def test_roofline_predicts_another_model_shape() -> None:
    ms = json.loads((RESULTS / "prefill-h100-qwen3-4b.json").read_text())["ms"]
    rows = roofline.held_out_errors(ms, roofline.ModelShape.of("qwen3-4b"), roofline.H100, cases=())
    errors = sorted(abs(e) for row in rows.values() for e in row.values())
    assert len(errors) == 14
    assert errors[-1] < 0.1


def test_tiling_counts_a_begun_wave_whole() -> None:
    large, small = roofline.ModelShape.of("qwen3-8b"), roofline.ModelShape.of("qwen3-4b")
    assert roofline._tiling(large, 1024, "fp8") == roofline._tiling(large, 1024, "exact") == 1.0
    # 1024 rows: 2560 outputs are 160 tiles, 28 more than one wave of 132
    assert roofline._tiling(small, 1024, "fp8") > 1.2
    assert roofline._tiling(small, 1024, "exact") < 1.1
    assert roofline._tiling(small, 8192, "fp8") < 1.1


def test_prediction_says_what_it_is() -> None:
    found = roofline.predict("qwen3-8b", "rtx5090")
    assert found["kind"] == "predicted"
    assert found["table"].startswith("predicted, not measured")
    assert all(abs(row["speedup"] / row["paper_5090"] - 1) < 0.2 for row in found["rows"])
