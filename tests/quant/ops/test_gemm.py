"""Which matrix product runs a shape."""

from __future__ import annotations

from mixquant_agents.quant.ops.gemm import GemmTable


def test_table_takes_the_next_measured_size() -> None:
    table = GemmTable("torch", "cutlass")
    assert table.pick(8, 8, 100) == "torch"
    table.learn(8, 8, {64: "cutlass", 512: "torch"})
    assert [table.pick(8, 8, m) for m in (1, 64, 65, 512, 9999)] == ["cutlass", "cutlass", "torch", "torch", "torch"]
    assert table.pick(8, 16, 64) == "torch"
    assert table.summary() == {"8x8": {64: "cutlass", 512: "torch"}}
