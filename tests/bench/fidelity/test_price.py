"""Recipes of a result file priced by measured tables."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from mixquant_agents.bench.fidelity.cost import added_time
from mixquant_agents.bench.fidelity.price import GPUS, price
from mixquant_agents.bench.fidelity.recipes import EMULATION
from mixquant_agents.bench.prefill.tables import SYSTEMS, load
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.quant.calibration.network import FUSED, Group

PARTS = {"qkv_proj": FUSED["qkv_proj"], "o_proj": ("o_proj",), "gate_up_proj": FUSED["gate_up_proj"],
         "down_proj": ("down_proj",)}  # fmt: skip


def members(blocks: int = 4) -> list[Group]:
    made = []
    for block, (leaf, names) in itertools.product(range(blocks), PARTS.items()):
        layers = tuple(torch.nn.Linear(8, 8, bias=False, device="meta") for _ in names)
        prefix = f"model.layers.{block}"
        made.append(Group(f"{prefix}.{leaf}", tuple(f"{prefix}.{name}" for name in names), layers))
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """FP8 takes twice NVFP4's time, exact four times."""
    sizes, rate = (64, 65536), {"bfloat16": 1e15, "fp8": 2e15, "nvfp4": 4e15}
    products = [
        {"gemm_dtype": dtype, "n": n, "k": k, "m": m, "latency": 2e3 * m * n * k / own}
        for (dtype, own), n, k, m in itertools.product(rate.items(), sizes, sizes, (1, 8192))
    ]
    heads = {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "batch_size": 1, "window_size": 0, "step": 0}
    attention = [{**heads, "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "isl": length, "latency": 0.0}
                 for length in (1, 16384)]  # fmt: skip
    for gpu, (kind, rows) in itertools.product(
        GPUS, (("gemm/vllm/0.24.0/gemm_perf", products), ("attention/vllm/0.24.0/context_attention_perf", attention))
    ):
        path = tmp_path / SYSTEMS[gpu] / f"{kind}.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return tmp_path


def added(folder: Path, **formats: str) -> float:
    policy = PrecisionPolicy(prefill_format="nvfp4", formats=formats)
    return added_time(members(), resolve(policy, EMULATION), tables=load("b200", folder))["8192"]


def test_prices_add_up(folder: Path) -> None:
    whole = added(folder, qkv_proj="fp8")
    assert whole > 0
    assert added(folder) == 0
    assert added(folder, **{r"re:.*layers\.[01]\..*qkv_proj": "fp8"}) == pytest.approx(whole / 2)
    assert added(folder, o_proj="exact") == pytest.approx(3 * added(folder, o_proj="fp8"))
    assert added(folder, qkv_proj="fp8", down_proj="fp8") == pytest.approx(whole + added(folder, down_proj="fp8"))
    assert added(folder, k_proj="fp8", v_proj="fp8") > whole / 3  # a third of its products, and the split


def test_recipes_of_a_file_get_their_price(folder: Path) -> None:
    report = {
        "recipes": {
            "fp8": {"policy": {"prefill_format": "fp8"}},
            "qkv-fp8": {
                "policy": {"prefill_format": "nvfp4", "formats": [["qkv_proj", "fp8"]]},
                "predicted_added_time": {},
            },
        }
    }
    price(report, members(), folder)
    assert "predicted_added_time_by_tables" not in report["recipes"]["fp8"]
    by_tables = report["recipes"]["qkv-fp8"]["predicted_added_time_by_tables"]
    assert set(by_tables) == set(GPUS)
    assert by_tables["b200"]["8192"] == pytest.approx(added(folder, qkv_proj="fp8"), rel=1e-3)
    assert report["tables"] == load("b200", folder).source
