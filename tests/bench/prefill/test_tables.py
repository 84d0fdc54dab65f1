"""Measured tables: read from files as the wheel has them, interpolated, and set beside the roofline."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mixquant_agents.bench.prefill import tables as module
from mixquant_agents.bench.prefill.predict import predict
from mixquant_agents.bench.prefill.roofline import GPUS, ModelShape
from mixquant_agents.bench.prefill.tables import SYSTEMS, Curve, Tables, load, table_parts
from mixquant_agents.errors import ConfigError, MissingDependencyError

RATE = {"bfloat16": 1e12, "fp8": 2e12, "nvfp4": 4e12}
"""FLOP/s of the pretended GPU."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of a GPU whose products take time in proportion to their arithmetic."""
    root = tmp_path_factory.mktemp("data")
    sizes = (1024, 4096, 16384, 65536)
    rows = (1, 512, 8192, 16384)
    products = [
        {"gemm_dtype": dtype, "n": n, "k": k, "m": m, "latency": 2e3 * m * n * k / rate}
        for (dtype, rate), n, k, m in itertools.product(RATE.items(), sizes, sizes, rows)
    ]
    attention = [
        {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "isl": length, "latency": length**2 / 1e6}
        | {
            "batch_size": batch,
            "window_size": window,
            "step": 0,
            "attn_dtype": "bfloat16",
            "kv_cache_dtype": "bfloat16",
        }
        for length, batch, window in itertools.product((1024, 8192, 16384), (1, 2), (0, 128))
    ]
    old = [{**row, "latency": 99.0} for row in products]
    for version, kept in (("0.9.0", old), ("0.24.0", products)):
        write(root / SYSTEMS["b200"] / "gemm" / "vllm" / version / "gemm_perf.parquet", kept)
    write(root / SYSTEMS["b200"] / "attention" / "vllm" / "0.24.0" / "context_attention_perf.parquet", attention)
    return root


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


@given(n=st.integers(1024, 100_000), k=st.integers(1024, 65536), rows=st.integers(1, 8192))
def test_products_between_the_tables_points_are_linear(folder: Path, n: int, k: int, rows: int) -> None:
    own = load("b200", folder)
    assert own.product_seconds(n, k, rows, "exact") == pytest.approx(2 * rows * n * k / RATE["bfloat16"], rel=1e-6)


def test_newest_vllm_and_single_sequences_count(folder: Path) -> None:
    own = load("b200", folder)
    assert own.source.endswith("vLLM 0.24.0")
    shape = ModelShape.of("qwen3-8b")
    assert (shape.heads, shape.key_heads, shape.head_dim) == (32, 8, 128)
    assert own.attention_seconds(shape, 8192, 0) == pytest.approx(8192**2 / 1e9)
    # Behind the longest that was measured it grows by the square, and a chunk behind others is a difference.
    assert own.attention_seconds(shape, 32768, 0) == pytest.approx(32768**2 / 1e9)
    assert own.attention_seconds(shape, 8192, 8192) == pytest.approx((16384**2 - 8192**2) / 1e9)


def test_chunks_are_products_of_their_own(folder: Path) -> None:
    own = load("b200", folder)
    assert own.product_seconds(4096, 4096, 20_000, "fp8") == pytest.approx(
        2 * own.product_seconds(4096, 4096, 8192, "fp8") + own.product_seconds(4096, 4096, 20_000 - 16384, "fp8")
    )


def test_speedup_follows_the_tables(folder: Path) -> None:
    found = predict("qwen3-8b", "b200", folder)
    shape = ModelShape.of("qwen3-8b")
    for row in found["by_tables"]["rows"]:
        seconds = {mode: sum(table_parts(shape, row["tokens"], mode, "b200", load("b200", folder)).values())
                   for mode in ("exact", "nvfp4")}  # fmt: skip
        assert row["speedup"] == pytest.approx(seconds["exact"] / seconds["nvfp4"], abs=0.006)
        assert row["exact_ms"] == pytest.approx(seconds["exact"] * 1e3, rel=0.01)
        assert row["over_roofline"]["exact_products"] > 100  # this GPU is slow
    assert "difference: time over the roofline's" in found["table"]
    assert found["table"].startswith("predicted, not measured")


def test_what_there_is_not_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(SYSTEMS) <= set(GPUS)
    with pytest.raises(ConfigError, match="no measured tables of GPU 'rtx5090'"):
        load("rtx5090", folder)
    with pytest.raises(ConfigError, match="holds no gemm table"):
        load("h100", folder)
    with pytest.raises(ConfigError, match="no attention of 9 heads"):
        Tables("t", {}, {}).attention_seconds(ModelShape(1, 1, 9, 8, 1, ((72, 1), (72, 1), (2, 1), (1, 1))), 5, 0)
    monkeypatch.setattr(module, "installed", lambda: None)
    with pytest.raises(MissingDependencyError, match="mixquant-agents\\[tables\\]"):
        load("h200")
    assert "no measured tables" in predict("qwen3-8b", "rtx5090")["table"]


def test_curve_stays_between_its_points() -> None:
    curve = Curve((2, 4), (1.0, 3.0))
    assert [curve.at(size) for size in (1, 2, 3, 4)] == [1.0, 1.0, 2.0, 3.0]
    assert curve.at(8, 2.0) == 12.0
