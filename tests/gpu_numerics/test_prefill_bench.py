"""The prefill benchmark's arithmetic, its result file and the roofline, without a GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mixquant_agents.bench.prefill import roofline
from mixquant_agents.bench.prefill.agents import run_agents
from mixquant_agents.bench.prefill.cores import by_speed, pin_threads
from mixquant_agents.bench.prefill.engines import engine_arguments
from mixquant_agents.bench.prefill.plan import CASES, COLUMNS, groups, needed_gib
from mixquant_agents.bench.prefill.report import report, table
from mixquant_agents.bench.prefill.run import Run, State, run_prefill
from mixquant_agents.bench.prefill.stats import median_interval, per_turn, pooled_ratio, ratio_interval, speedup
from mixquant_agents.bench.shapes import SHAPES
from mixquant_agents.errors import ConfigError

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_interval_of_equal_rounds_is_a_point() -> None:
    found = speedup([3.0, 6.0, 9.0], [2.0, 4.0, 6.0])
    assert found["median"] == pytest.approx(1.5)
    assert found["low95"] == pytest.approx(1.5)


def test_interval_widens_with_noise_and_needs_two_rounds() -> None:
    quiet, loud = ratio_interval([1.49, 1.5, 1.51]), ratio_interval([1.2, 1.5, 1.8])
    assert loud["low95"] < quiet["low95"] < 1.5 < quiet["high95"] < loud["high95"]
    with pytest.raises(ValueError, match="two rounds"):
        ratio_interval([1.5])


def test_a_wild_pair_hardly_moves_the_interval_of_the_median() -> None:
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (1.0, 6.0)  # 2 in 64 lie outside
    assert median_interval([float(n) for n in range(1, 31)]) == (10.0, 21.0)  # the textbook's ranks for 30
    with pytest.raises(ValueError, match="at least six"):
        median_interval([1.0] * 5)
    quiet = [1.1, 1.11, 1.12, 1.1, 1.13, 1.12, 1.11, 1.1, 1.12, 1.11]
    wild = ratio_interval([*quiet[:-1], 0.3])
    assert wild["low95"] < 0.8
    assert wild["median_low95"] == ratio_interval(quiet)["median_low95"] == 1.1


def test_pooled_quantiles_are_of_all_turns_and_pairs_are_drawn_whole() -> None:
    calm, busy = ([1.0] * 50, [0.5] * 50), ([100.0] * 50, [80.0] * 50)
    found = pooled_ratio([calm, busy] * 8)
    assert found["ratio"] == pytest.approx(0.8)  # the busy half holds the p95 of both
    assert found["low95"] == pytest.approx(0.8)
    assert pooled_ratio([calm, busy] * 8, quantile=0.4)["ratio"] == pytest.approx(0.5)
    waits = [10.0 + 0.1 * turn for turn in range(60)]
    noisy = [(waits, [wait * factor for wait in waits]) for factor in (0.7, 0.72, 0.75, 0.77, 0.8, 0.82)]
    few, many = pooled_ratio(noisy), pooled_ratio(noisy * 4)
    assert few["low95"] < many["low95"] < many["ratio"] < many["high95"] < few["high95"]
    with pytest.raises(ValueError, match="two pairs, not 1"):
        pooled_ratio([calm, ([], [])])


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


def test_columns_of_several_groups_join_in_one_table() -> None:
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


def test_engines_come_in_groups_that_fit() -> None:
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


def test_several_gpus_share_weights_and_cache_but_not_what_each_needs_for_itself() -> None:
    config = SHAPES["qwen3-8b"]
    one, two = (needed_gib("exact", 10.0, config, gpus) for gpus in (1, 2))
    assert 0.5 * one < two < 0.7 * one
    assert [group.columns for group in groups(COLUMNS, CASES, config, 79.0, gpus=2)] == [COLUMNS]
    shared = engine_arguments("mixquant-fp8", Path("m"), 10.0, dummy=True, gpus=2)
    assert (shared["tensor_parallel_size"], shared["kv_cache_memory_bytes"]) == (2, 5 * 2**30)
    assert "tensor_parallel_size" not in engine_arguments("mixquant-fp8", Path("m"), 10.0, dummy=True)


def test_weights_of_the_plan_are_those_measured() -> None:
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


def test_threads_are_kept_on_the_cores_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: dict[int, list[int]] = {}

    def keep(thread: int, cores: Iterable[int]) -> None:
        if thread == 9:
            raise ProcessLookupError  # ended since it was listed
        kept[thread] = list(cores)

    monkeypatch.setattr(os, "sched_setaffinity", keep)
    for thread in (os.getpid(), 7, 8, 9):
        (tmp_path / str(thread)).mkdir()
    assert pin_threads([2, 3, 4], tmp_path) == 4
    assert kept == {os.getpid(): [2], 7: [3, 4], 8: [3, 4]}


def test_the_fastest_core_comes_first_and_nothing_stays_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    now: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: now.append(set(cores)))
    assert by_speed(lambda: {4: 2.0, 5: 1.0, 6: 3.0}[min(now[-1])]) == [5, 4, 6]
    assert now[-1] == {4, 5, 6}


def test_state_survives_and_is_continued(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json", info={"model": "m"})
    run = state.run_of(["exact"], CASES[:1])
    run.rounds.append({"cold_64": {"exact": [1.0]}})
    state.save()
    again = State.load(tmp_path / "state.json")
    assert (again.runs, again.info) == (state.runs, state.info)
    assert again.run_of(["exact"], CASES[:1]).rounds == run.rounds
    assert again.run_of(["exact"], CASES[:2]).rounds == []
    assert State.load(tmp_path / "none.json").runs == []


def test_what_is_not_there_or_was_measured_on_other_gpus_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    platform = SimpleNamespace(is_cuda=lambda: True, device_count=lambda: 2, get_device_total_memory=lambda: 80 * 2**30)
    monkeypatch.setattr("vllm.platforms.current_platform", platform)
    with pytest.raises(ConfigError, match="--gpus 3, and this machine has 2"):
        run_prefill(gpus=3)
    State(tmp_path / "one.json", info={"model": "qwen3-8b"}).save()
    fresh = State.load(tmp_path / "new.json")
    fresh.take(model="qwen3-8b", gpus=2)
    assert fresh.info == {"model": "qwen3-8b", "gpus": 2}
    with pytest.raises(ConfigError, match="model 'qwen3-8b', not 'qwen3-4b'"):
        fresh.take(model="qwen3-4b", gpus=2)
    with pytest.raises(ConfigError, match=r"one\.json holds a run with gpus 1, not 2; give another --state"):
        run_prefill(gpus=2, state_path=tmp_path / "one.json")


def test_all_columns_but_vllms_defaults_share_graph_sizes() -> None:
    found = {column: engine_arguments(column, Path("m"), 1.0, dummy=True) for column in COLUMNS}
    assert "compilation_config" not in found["exact_default"]
    sizes = [a["compilation_config"]["cudagraph_capture_sizes"] for c, a in found.items() if c != "exact_default"]
    assert all(each == sizes[0] for each in sizes)
    assert max(sizes[0]) >= 2048
    assert "quantization" not in found["exact"]


def test_no_gpu_and_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="--predict"):
        run_prefill()
    with pytest.raises(ConfigError, match="no column 'int3'"):
        run_prefill(columns=["int3"])
    with pytest.raises(ConfigError, match="no case 'cold_3'"):
        run_prefill(cases=["cold_3"])
    with pytest.raises(ConfigError, match="choose one of h200"):
        roofline.predict("qwen3-8b", "abacus")
    with pytest.raises(ConfigError, match="no model shape"):
        roofline.predict("gpt-1", "h200")


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_roofline_is_fitted_to_the_committed_results_and_hits_the_held_out_sizes(gpu: str) -> None:
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


def test_roofline_predicts_a_model_shape_it_was_not_fitted_to() -> None:
    ms = json.loads((RESULTS / "prefill-h100-qwen3-4b.json").read_text())["ms"]
    rows = roofline.held_out_errors(ms, roofline.ModelShape.of("qwen3-4b"), roofline.H100, cases=())
    errors = sorted(abs(e) for row in rows.values() for e in row.values())
    assert len(errors) == 14
    assert errors[-1] < 0.1


def test_a_wave_that_is_hardly_begun_costs_a_whole_one_in_fp8() -> None:
    large, small = roofline.ModelShape.of("qwen3-8b"), roofline.ModelShape.of("qwen3-4b")
    assert roofline._tiling(large, 1024, "fp8") == roofline._tiling(large, 1024, "exact") == 1.0
    # 1024 rows: 2560 outputs are 160 tiles, 28 more than one wave of 132
    assert roofline._tiling(small, 1024, "fp8") > 1.2
    assert roofline._tiling(small, 1024, "exact") < 1.1
    assert roofline._tiling(small, 8192, "fp8") < 1.1


def test_predictions_say_what_they_are() -> None:
    found = roofline.predict("qwen3-8b", "rtx5090")
    assert found["kind"] == "predicted"
    assert found["table"].startswith("predicted, not measured")
    assert all(abs(row["speedup"] / row["paper_5090"] - 1) < 0.2 for row in found["rows"])


def test_agents_are_compared_on_equal_work_and_arrivals(tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, object]]] = []
    kept: list[int] = []

    def ask(column: str, request: dict[str, object]) -> dict[str, object]:
        asked.append((column, request))
        slow = 2.0 if column == "exact" else 1.0
        return {"tokens_per_s": 1600 / slow, "turns": 3, "ttft_ms": [10 * slow] * 3, "itl_ms": [slow] * 9}

    state = State(tmp_path / "state.json")

    def keep() -> None:
        state.save()
        kept.append(state.agents_of(4.0).pairs)

    run_agents(ask, state.agents_of(4.0), 3, lambda text: None, keep)
    assert kept == [0, 0, 0, 0, 1, 2, 3], "what was measured survives an end in the middle"
    ratios = report(state.info, state.runs, state.agents)["agents32"]
    assert (ratios["tokens_per_s_ratio"], ratios["ttft_p95_ratio"], ratios["itl_p95_ratio"]) == (2.0, 0.5, 0.5)
    assert ratios["ttft_p95_ratio_95"] == ratios["ttft_p95_ratio_pairs_95"] == [0.5, 0.5]
    assert (ratios["pairs"], ratios["turns"]) == (3, [9, 9])
    opened = [(column, request) for column, request in asked if "rate" in request]
    assert {request["rate"] for _, request in opened} == {0.8 * 800 / 160}
    assert [request["seed"] for _, request in opened] == [0, 0, 1, 1, 2, 2]
    assert all(request["turns_each"] == 2 for _, request in asked if "rate" not in request)

    again = State.load(state.path)
    assert again == state
    asked.clear()
    run_agents(ask, again.agents_of(4.0), 5, lambda text: None, again.save)
    assert [request.get("seed") for _, request in asked] == [3, 3, 4, 4], "other arrivals, and no closed loop anew"
    assert [column for column, _ in asked] == ["exact", "mixquant-fp8", "mixquant-fp8", "exact"]
    assert report({}, [], State.load(state.path).agents)["agents32"]["turns"] == [15, 15]
    with pytest.raises(ConfigError, match=r"runs of 4 s, not 9; give another --state"):
        again.agents_of(9.0)


def test_turns_of_a_round_count_each() -> None:
    rounds = [
        {"cold_64": {"exact": [2.0, 2.2, 2.1, 4.0, 4.4, 4.2], "mixquant-fp8": [1.0, 1.1, 1.05, 2.0, 2.2, 2.1]}}
    ] * 2
    assert per_turn(rounds, "cold_64", "exact", 2) == [2.1, 4.2, 2.1, 4.2]
    found = report({}, [Run(["exact", "mixquant-fp8"], {"cold_64": 2}, rounds)])["speedup"]["cold_64"]
    assert found["pairs"] == 4
    assert found["low95"] == pytest.approx(2.0)
