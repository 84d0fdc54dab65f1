"""Routed operations inside CUDA graphs, without vLLM."""

from __future__ import annotations

import types

import pytest
import torch

from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.ops import rowwise_torch as reference
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan
from mixquant_agents.quant.twins.registry import register
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("operations")]

M, K, N = 200, 512, 768
FP8 = torch.float8_e4m3fn
ops = torch.ops.mixquant


class Inputs:
    def __init__(self, kernels: types.ModuleType) -> None:
        make = torch.Generator(device="cuda").manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device="cuda", generator=make).to(torch.bfloat16)

        self.x, self.residual, self.wide = random(M, K), random(M, K), random(M, 2 * K)
        self.gamma = random(K).abs() + 0.5
        self.weight = random(N, K) / K**0.5
        self.bias = random(N)
        twin = RowwiseTwin("fp8-native", FP8, "torch", "cutlass")
        self.registered = register(self.weight, twin, twin.build(self.weight))

    def run(self, name: str) -> torch.Tensor:
        twin = (self.weight, self.bias)
        if name == "linear":
            return ops.gpu_linear(self.x, *twin)
        if name == "norm":
            return ops.gpu_norm_linear(self.x, self.gamma, 1e-6, *twin)
        if name == "add_norm":
            return torch.cat([*ops.gpu_add_norm_linear(self.x, self.residual, self.gamma, 1e-6, *twin)], dim=1)
        return ops.gpu_silu_linear(self.wide, *twin)

    def input_of(self, name: str) -> torch.Tensor:
        """The Linear's unquantized input."""
        if name == "linear":
            return self.x
        if name == "silu":
            return reference.silu_rows(self.wide)
        return reference.norm_rows(self.x, self.residual if name == "add_norm" else None, self.gamma, 1e-6)[0]


NAMES = ["linear", "norm", "add_norm", "silu"]


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize("name", NAMES)
def test_modes_against_float64(kernels: types.ModuleType, name: str) -> None:
    data = Inputs(kernels)
    true = data.input_of(name).double() @ data.weight.double().T + data.bias.double()
    with steps.forced(EXACT):
        exact = data.run(name)[:, :N]
    with steps.forced(QUANTIZED):
        quantized = data.run(name)[:, :N]
    assert error(exact, true) < 5e-3
    assert 1e-2 < error(quantized, true) < 6e-2


@pytest.mark.parametrize("name", NAMES)
def test_replay_with_other_indices_routes_other_rows(kernels: types.ModuleType, name: str) -> None:
    data = Inputs(kernels)
    index = torch.full((16,), -1, dtype=torch.int32, device="cuda")
    step = StepPlan(Mode.MIXED, M, exact_rows=index)
    with steps.forced(EXACT):
        exact = data.run(name)
    with steps.forced(QUANTIZED):
        quantized = data.run(name)
    with steps.forced(step):
        data.run(name)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = data.run(name)
    for rows in ([5], [0, 7, 199], list(range(100, 116)), []):
        index.fill_(-1)
        index[: len(rows)] = torch.tensor(rows, dtype=torch.int32, device="cuda")
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        chosen = torch.zeros(M, dtype=torch.bool, device="cuda")
        chosen[rows] = True
        assert torch.equal(out[~chosen], quantized[~chosen])
        if rows:
            # BF16 products of other sizes may round differently; quantized rows are forty times as far away.
            assert error(out[chosen], exact[chosen]) < 4e-3
            assert error(out[chosen][:, :N], quantized[chosen][:, :N]) > 1e-2
        with steps.forced(step):
            assert torch.equal(data.run(name), out)  # eager and captured agree bit for bit


def test_int8_rows_are_close(kernels: types.ModuleType) -> None:
    data = Inputs(kernels)
    codes, scales = kernels.quantize_rows(data.x, torch.int8)
    assert error(codes.double() * scales.double(), data.x) < 1e-2
