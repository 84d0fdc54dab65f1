"""The routed operations in their plain form, on a CPU: each mode, and which rows a mixed step leaves exact."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.nn.functional import linear

from mixquant_agents.errors import EngineStartError
from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.ops import linear as ops
from mixquant_agents.quant.ops import rowwise_torch as reference
from mixquant_agents.quant.ops.sources import ExactRows, RowSource
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.registry import lookup, register
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

M, K, N = 17, 48, 32


class Data:
    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.x, self.residual, self.wide = torch.randn(M, K), torch.randn(M, K), torch.randn(M, 2 * K)
        self.gamma, self.bias = torch.rand(K) + 0.5, torch.randn(N)
        self.weight = torch.randn(N, K) / K**0.5
        twin = RowwiseTwin("8 bits", dtype, "cutlass")
        self.registered = register(self.weight, twin, twin.build(self.weight))
        self.twin = (self.weight, self.bias)

    def run(self, name: str) -> torch.Tensor:
        if name == "linear":
            return ops.gpu_linear(self.x, *self.twin)
        if name == "norm":
            return ops.gpu_norm_linear(self.x, self.gamma, 1e-6, *self.twin)
        if name == "add_norm":
            return ops.gpu_add_norm_linear(self.x, self.residual, self.gamma, 1e-6, *self.twin)[0]
        return ops.gpu_silu_linear(self.wide, *self.twin)

    def input_of(self, name: str) -> torch.Tensor:
        if name == "linear":
            return self.x
        if name == "silu":
            return torch.nn.functional.silu(self.wide[:, :K]) * self.wide[:, K:]
        total = self.x + self.residual if name == "add_norm" else self.x
        return torch.nn.functional.rms_norm(total, (K,), self.gamma, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("name", ["linear", "norm", "add_norm", "silu"])
def test_modes_run_the_rows_they_say(name: str, dtype: torch.dtype) -> None:
    data = Data(dtype)
    rows = data.input_of(name)
    with steps.forced(EXACT):
        exact = data.run(name)
    with steps.forced(QUANTIZED):
        quantized = data.run(name)
    torch.testing.assert_close(exact, linear(rows, data.weight, data.bias), rtol=1e-5, atol=1e-5)
    codes, scales = reference.quantize_rows(rows, dtype)
    state = data.registered.state
    want = (codes.double() * scales) @ (state.codes.double() * state.scales).T + data.bias
    torch.testing.assert_close(quantized, want.float(), rtol=1e-3, atol=1e-3)
    assert float((exact - quantized).abs().max()) > 1e-3

    index = torch.tensor([3, -1, 16, 0], dtype=torch.int32)
    with steps.forced(StepPlan(Mode.MIXED, M, exact_rows=index)):
        mixed = data.run(name)
    kept = [0, 3, 16]
    others = [row for row in range(M) if row not in kept]
    assert torch.equal(mixed[others], quantized[others])
    torch.testing.assert_close(mixed[kept], exact[kept], rtol=1e-6, atol=1e-6)


def test_sum_with_the_residual_comes_back() -> None:
    data = Data(torch.float8_e4m3fn)
    for step in (EXACT, QUANTIZED):
        with steps.forced(step):
            _, total = ops.gpu_add_norm_linear(data.x, data.residual, data.gamma, 1e-6, *data.twin)
        assert torch.equal(total, data.x + data.residual)


def test_zero_rows_and_no_rows() -> None:
    data = Data(torch.float8_e4m3fn)
    with steps.forced(QUANTIZED):
        out = ops.gpu_linear(torch.zeros(2, K), *data.twin)
        assert torch.equal(out, data.bias.expand(2, N))
        assert ops.gpu_linear(torch.zeros(0, K), data.weight, None).shape == (0, N)


def test_twin_is_found_by_its_weight_and_lives_no_longer() -> None:
    data = Data(torch.int8)
    assert lookup(data.weight) is data.registered
    with steps.forced(QUANTIZED), pytest.raises(EngineStartError, match="cpu_offload_gb"):
        ops.gpu_linear(data.x, data.weight.clone(), None)
    del data.registered
    gc.collect(1)  # what is new: all there is takes seconds
    with pytest.raises(EngineStartError, match="not found"):
        lookup(data.weight)


def test_operators_pass_torch_checks() -> None:
    data = Data(torch.int8)  # torch's checks multiply by a number, which FP8 on a CPU does not
    with steps.forced(EXACT):
        for op, arguments in (
            (torch.ops.mixquant.gpu_linear, (data.x, *data.twin)),
            (torch.ops.mixquant.gpu_norm_linear, (data.x, data.gamma, 1e-6, *data.twin)),
            (torch.ops.mixquant.gpu_add_norm_linear, (data.x, data.residual, data.gamma, 1e-6, *data.twin)),
            (torch.ops.mixquant.gpu_silu_linear, (data.wide, *data.twin)),
        ):
            torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_outside_of_any_context_rows_run_exact() -> None:
    data = Data(torch.int8)
    assert torch.equal(data.run("linear"), linear(data.x, *data.twin))


@pytest.mark.parametrize("name", ["linear", "norm", "add_norm", "silu"])
def test_twin_that_reads_plain_rows_keeps_exact_ones_too(name: str) -> None:
    """A twin that takes rows unquantized fills the exact ones on the way, whatever the source."""

    class Doubling(Twin[None]):
        name = "doubling"

        def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
            return 0

        def build(self, weight: torch.Tensor) -> None:
            return None

        def tensors(self, state: None) -> dict[str, torch.Tensor]:
            return {}

        def product(
            self, source: RowSource, state: None, bias: torch.Tensor | None = None, exact: ExactRows | None = None
        ) -> torch.Tensor:
            return 2 * source.rows_with(exact)[:, :N]

    data = Data(torch.int8)
    data.registered = register(data.weight, Doubling(), None)
    with steps.forced(EXACT):
        exact = data.run(name)
    with steps.forced(StepPlan(Mode.MIXED, M, exact_rows=torch.tensor([-1, 5, 9], dtype=torch.int32))):
        mixed = data.run(name)
    others = [row for row in range(M) if row not in (5, 9)]
    torch.testing.assert_close(mixed[[5, 9]], exact[[5, 9]], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixed[others], 2 * data.input_of(name)[others, :N], rtol=1e-5, atol=1e-5)
