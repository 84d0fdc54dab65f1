"""The plan from a configuration, against what the engines on an H200 really held."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixquant_agents.bench.shapes import SHAPES
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.quant.experts.estimate import estimate, shape_of

RESULT = Path(__file__).parents[3] / "docs/results/prefill-moe.json"
GIB = 2**30


def test_twins_are_as_large_as_the_engines() -> None:
    measured = json.loads(RESULT.read_text())["engines"]["mixquant-fp8"]["plugin"]["twin_bytes"]
    plan = estimate(SHAPES["qwen3-30b-a3b"], NumberFormat.FP8, 140 * GIB)
    assert plan is not None
    assert plan.exact == frozenset()
    assert 0.95 < plan.needed / measured < 1  # the dense layers' are not in it


@pytest.mark.parametrize(
    ("name", "gib", "number_format", "all_fit"),
    [
        ("qwen3-30b-a3b", 80, NumberFormat.FP8, False),
        ("gemma-4-26b-a4b", 140, NumberFormat.FP8, True),
        ("gemma-4-26b-a4b", 96, NumberFormat.NVFP4, True),
    ],
)
def test_memory_decides(name: str, gib: int, number_format: NumberFormat, all_fit: bool) -> None:
    plan = estimate(SHAPES[name], number_format, gib * GIB)
    assert plan is not None
    assert (not plan.exact) == all_fit
    assert len(plan.exact) < len(plan.offers)


def test_dense_models_and_formats_without_a_native_form_have_no_plan() -> None:
    assert estimate(SHAPES["qwen3-8b"], NumberFormat.FP8, 80 * GIB) is None
    assert estimate(SHAPES["qwen3-30b-a3b"], NumberFormat.MXFP4, 80 * GIB) is None


def test_text_part_of_a_larger_model_is_what_counts() -> None:
    assert shape_of({"text_config": SHAPES["gemma-4-26b-a4b"]}) == shape_of(SHAPES["gemma-4-26b-a4b"])
