"""A fused layer whose parts have different formats: each part's columns are what the part alone would give."""

from __future__ import annotations

import pytest
import torch
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearLayerConfig
from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.plan import Mode
from mixquant_agents.precision.resolve import LayerFormat, PartFormats
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.ops import linear as ops
from mixquant_agents.quant.ops.eager import eager_linear
from mixquant_agents.quant.ops.sources import ExactRows, NormRows, PlainRows
from mixquant_agents.quant.step import StepPlan
from mixquant_agents.quant.twins.calibrated import LayerCalibration
from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin
from mixquant_agents.quant.twins.parts import ExactTwin, PartsTwin, Segment
from mixquant_agents.quant.twins.registry import register
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

WIDTHS = (64, 32, 32)
K = 48
NVFP4, FP8 = (LayerFormat(NumberFormat(name), emulated=True) for name in ("nvfp4", "fp8"))
KV_FP8 = PartFormats((NVFP4, FP8, FP8))


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(sum(WIDTHS), K, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(9, K, generator=torch.Generator().manual_seed(1))


def native() -> PartsTwin:
    """NVFP4 and FP8 as captured graphs would hold them, through what a CPU has for their kernels."""
    nvfp4 = Nvfp4Twin(kernel=EmulationNvFp4LinearKernel(NvFp4LinearLayerConfig()))
    fp8 = RowwiseTwin("fp8-native", torch.float8_e4m3fn, "torch")
    return PartsTwin("nvfp4-native + fp8-native", (Segment(nvfp4, 64, range(1)), Segment(fp8, 64, range(1, 3))))


@pytest.mark.parametrize(
    "formats",
    [KV_FP8, PartFormats((NVFP4, FP8, NVFP4)), PartFormats((FP8, None, NVFP4)), PartFormats((None, FP8, FP8))],
)
def test_parts_equal_what_each_projection_alone_gives(
    formats: PartFormats, weight: torch.Tensor, x: torch.Tensor
) -> None:
    twin = twin_of(formats, WIDTHS)
    whole = twin.product(PlainRows(x), twin.build(weight))
    for part, own, columns in zip(formats.parts, weight.split(WIDTHS), whole.split(WIDTHS, dim=1), strict=True):
        if part is None:
            expected = x @ own.T
        else:
            alone = twin_of(part)
            expected = alone.product(PlainRows(x), alone.build(own))
        torch.testing.assert_close(columns, expected, rtol=1e-5, atol=1e-5)


def test_neighbouring_parts_of_one_format_are_one_segment() -> None:
    twin = twin_of(KV_FP8, WIDTHS)
    assert isinstance(twin, PartsTwin)
    assert [(segment.width, list(segment.parts)) for segment in twin.segments] == [(64, [0]), (64, [1, 2])]
    assert twin.name == "nvfp4-emulated + fp8-emulated + fp8-emulated"
    assert not twin.captured
    assert twin is twin_of(KV_FP8, WIDTHS), "one object for each"
    assert twin is not twin_of(KV_FP8, (32, 16, 16))


def test_parts_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(FormatRefusedError, match=r"3 parts.*has 2 \(64, 32 outputs\)"):
        twin_of(KV_FP8, (64, 32))


def test_eager_rows_are_routed_to_all_parts_alike(weight: torch.Tensor, x: torch.Tensor) -> None:
    twin = twin_of(KV_FP8, WIDTHS)
    state = twin.build(weight)
    step = StepPlan(Mode.MIXED, 9, exact_rows=torch.tensor([0, 8]), quantized_rows=torch.arange(1, 8))
    mixed = eager_linear(x, weight, None, twin, state, step)
    quantized = twin.product(PlainRows(x), state)
    torch.testing.assert_close(mixed[[0, 8]], (x @ weight.T)[[0, 8]])
    torch.testing.assert_close(mixed[1:8], quantized[1:8])


def test_captured_parts_are_one_operation_with_exact_rows_and_bias(weight: torch.Tensor, x: torch.Tensor) -> None:
    twin, bias = native(), torch.randn(sum(WIDTHS), generator=torch.Generator().manual_seed(2))
    assert twin.captured
    registered = register(weight, twin, twin.build(weight))
    index = torch.tensor([4, -1], dtype=torch.int32)
    with steps.forced(StepPlan(Mode.MIXED, 9, exact_rows=index)):
        mixed = ops.gpu_linear(x, weight, bias)
    with steps.forced(steps.QUANTIZED):
        quantized = ops.gpu_linear(x, weight, bias)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    torch.testing.assert_close(mixed[4], torch.nn.functional.linear(x, weight, bias)[4])
    assert torch.equal(mixed[others], quantized[others])
    torch.testing.assert_close(quantized, twin.product(PlainRows(x), registered.state) + bias, rtol=1e-5, atol=1e-5)


def test_fused_norm_is_computed_once_and_fills_exact_rows(weight: torch.Tensor, x: torch.Tensor) -> None:
    twin, gamma = native(), torch.rand(K) + 0.5
    state = twin.build(weight)
    exact = ExactRows(torch.tensor([2, -1], dtype=torch.int32), torch.empty(2, K))
    out = twin.product(NormRows(x, gamma, 1e-6), state, None, exact)
    rows = NormRows(x, gamma, 1e-6).rows()
    torch.testing.assert_close(exact.rows[0], rows[2])
    torch.testing.assert_close(out, twin.product(PlainRows(rows), state))


def test_new_weights_go_where_the_old_twins_lie(weight: torch.Tensor, x: torch.Tensor) -> None:
    twin = native()
    state, fresh = twin.build(weight), weight.flip(0) * 3
    places = {name: tensor.data_ptr() for name, tensor in twin.tensors(state).items()}
    twin.renew(state, twin.build(fresh))
    assert {name: tensor.data_ptr() for name, tensor in twin.tensors(state).items()} == places
    torch.testing.assert_close(twin.product(PlainRows(x), state), twin.product(PlainRows(x), twin.build(fresh)))


def test_bytes_are_those_of_the_segments(weight: torch.Tensor) -> None:
    twin = native()
    held = sum(t.numel() * t.element_size() for t in twin.tensors(twin.build(weight)).values())
    scalars = 4 * 4  # global scales and alpha
    assert held == twin.nbytes(sum(WIDTHS), K, weight.dtype) + scalars
    assert ExactTwin().nbytes(64, 48, torch.bfloat16) == 0


def test_calibrated_scale_reaches_nvfp4_alone(weight: torch.Tensor) -> None:
    tiny = torch.randn(5, K, generator=torch.Generator().manual_seed(3)) * 1e-4
    twin = native()
    lost = twin.product(PlainRows(tiny), twin.build(weight))
    kept = twin.product(PlainRows(tiny), twin.build(weight, LayerCalibration(activation_scale=2.0**18)))
    exact = tiny @ weight.T
    assert torch.equal(lost[:, :64], torch.zeros_like(lost[:, :64])), "a scale of 1 loses all of so small rows"
    assert (kept - exact)[:, :64].norm() / exact[:, :64].norm() < 0.2
    torch.testing.assert_close(kept[:, 64:], lost[:, 64:])
