"""Which engines live together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixquant_agents.bench.prefill.engines import column_arguments
from mixquant_agents.bench.prefill.plan import CASES, COLUMNS, NESTED, groups, needed_gib
from mixquant_agents.bench.shapes import SHAPES
from mixquant_agents.errors import ConfigError

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def test_groups_fit_into_memory() -> None:
    config = SHAPES["qwen3-8b"]
    large, small = (groups(COLUMNS, CASES, config, total, agents=True) for total in (140.0, 79.0))
    assert [group.columns for group in large] == [COLUMNS, ("exact", "mixquant-fp8")]
    assert [group.columns for group in small] == [
        ("exact", "uniform-fp8", "mixquant-fp8", "mixquant-fp8-exact-last"),
        ("exact_default", "mixquant-fp8"),
        ("exact", "mixquant-fp8"),
    ]
    for group in small:
        assert sum(needed_gib(name, kv, config) for name, kv in group.kv.items()) < 79
    assert [group.agents for group in small] == [False, False, True]
    assert [group.agents for group in groups(COLUMNS, [], config, 79.0, agents=True)] == [True]
    (joint,) = groups(["exact", "mixquant-fp8"], CASES[:2], config, 79.0, agents=True)  # no engine starts twice
    assert (joint.agents, joint.cases, joint.max_len) == (True, tuple(CASES[:2]), 12_288)
    with pytest.raises(ConfigError, match="qwen3-4b"):
        groups(COLUMNS, CASES, config, 40.0)


def test_needed_memory_is_shared_by_several_gpus() -> None:
    config = SHAPES["qwen3-8b"]
    one, two = (needed_gib("exact", 10.0, config, gpus) for gpus in (1, 2))
    assert 0.5 * one < two < 0.7 * one
    assert [group.columns for group in groups(COLUMNS, CASES, config, 79.0, gpus=2)] == [COLUMNS]
    shared = column_arguments("mixquant-fp8", Path("m"), 10.0, dummy=True, gpus=2)
    assert (shared["tensor_parallel_size"], shared["kv_cache_memory_bytes"]) == (2, 5 * 2**30)
    assert "tensor_parallel_size" not in column_arguments("mixquant-fp8", Path("m"), 10.0, dummy=True)


def test_planned_weights_are_those_measured() -> None:
    measured = {
        name: each["weight_bytes"]
        for name, each in json.loads((RESULTS / "prefill-h100.json").read_text())["engines"].items()
    }
    config = SHAPES["qwen3-8b"]
    for name, weights in measured.items():
        planned = needed_gib(name, 0.0, config) - needed_gib(
            name, 0.0, {**config, "num_hidden_layers": 0, "vocab_size": 0}
        )
        assert planned == pytest.approx(weights / 2**30, rel=0.01)


def test_nested_weights_are_an_engine_of_their_own_and_take_turns_with_the_pair() -> None:
    config, cases = SHAPES["qwen3-8b"], CASES[:3]
    (group,) = groups(["exact", "mixquant-fp8", NESTED], cases, config, 140.0)
    assert group.pair == ("exact", "mixquant-fp8", NESTED)
    assert set(group.kv) == {"exact", "mixquant-fp8", NESTED}
    (alone,) = groups(["exact", NESTED], cases, config, 140.0)
    assert alone.pair == ("exact", NESTED)
    assert needed_gib(NESTED, 1.0, config) < needed_gib("exact", 1.0, config)
    policy = column_arguments(NESTED, Path("m"), 1.0, dummy=True)["hf_overrides"]["quantization_config"]["policy"]
    assert (policy["prefill_format"], policy["storage"]) == ("fp8", "nested")
