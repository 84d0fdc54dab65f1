"""Native twins as far as a CPU can tell: layouts, refusals, and NVFP4 through vLLM's own emulation kernel."""

from __future__ import annotations

import pytest
import torch
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearLayerConfig
from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.ops import linear as ops
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan
from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin, select_kernel
from mixquant_agents.quant.twins.registry import register
from mixquant_agents.quant.twins.rowwise import RowwiseTwin


@pytest.fixture
def twin() -> Nvfp4Twin:
    return Nvfp4Twin(kernel=EmulationNvFp4LinearKernel(NvFp4LinearLayerConfig()))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_rowwise_twin(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(32, 48), torch.randn(5, 48)
    native = RowwiseTwin("8 bits", dtype, "cutlass")
    state = native.build(weight)
    codes, scales = state
    assert codes.dtype == dtype
    assert scales.shape == (32, 1)
    error = (native.product(PlainRows(x), state) - x @ weight.T).norm() / (x @ weight.T).norm()
    assert 1e-3 < float(error) < 6e-2


def test_nvfp4_twin_equals_the_plain_reference(twin: Nvfp4Twin) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(32, 64), torch.randn(7, 64)
    state = twin.build(weight)
    plain_weight = nvfp4.dequantize(nvfp4.quantize(weight, nvfp4.tensor_global_scale(weight)))
    plain_rows = nvfp4.dequantize(nvfp4.quantize(x, torch.ones(())))
    torch.testing.assert_close(twin.product(PlainRows(x), state), plain_rows @ plain_weight.T, rtol=1e-4, atol=1e-4)


def test_nvfp4_routes_rows(twin: Nvfp4Twin) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(32, 64), torch.randn(7, 64)
    registered = register(weight, twin, twin.build(weight))
    assert registered.twin is twin
    with steps.forced(EXACT):
        exact = ops.gpu_linear(x, weight, None)
    with steps.forced(QUANTIZED):
        quantized = ops.gpu_linear(x, weight, None)
    index = torch.tensor([2, -1], dtype=torch.int32)
    with steps.forced(StepPlan(Mode.MIXED, 7, exact_rows=index)):
        mixed = ops.gpu_linear(x, weight, None)
    others = [0, 1, 3, 4, 5, 6]
    assert torch.equal(mixed[others], quantized[others])
    torch.testing.assert_close(mixed[2], exact[2])
    assert not torch.allclose(quantized[2], exact[2], atol=1e-3)


def test_kernel_that_does_not_multiply_in_fp4_is_refused() -> None:
    with pytest.raises(FormatRefusedError, match="mixquant-fp8"):
        select_kernel()  # a CPU has no NVFP4 kernel but the emulation
    with pytest.raises(FormatRefusedError, match="mixquant-fp8"):
        Nvfp4Twin().prepare()  # asked before weights are loaded


@pytest.mark.parametrize("native", [RowwiseTwin("fp8-native", torch.float8_e4m3fn, "torch"), Nvfp4Twin()])
def test_odd_shapes_are_refused_by_name(native: RowwiseTwin | Nvfp4Twin) -> None:
    native.check(32, 48, "model.layers.0.mlp.down_proj")
    with pytest.raises(FormatRefusedError, match=r"layers\.0\.mlp\.down_proj.*33 outputs.*ignored_layers"):
        native.check(33, 48, "model.layers.0.mlp.down_proj")
