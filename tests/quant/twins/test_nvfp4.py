"""Rows with 4/6 block scales: vLLM's own kernels get ours, and those that cannot take them are passed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm import _custom_ops
from vllm.model_executor.kernels import linear as vllm_linear
from vllm.model_executor.kernels.linear.nvfp4 import flashinfer
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel, NvFp4LinearLayerConfig
from vllm.model_executor.kernels.linear.nvfp4.cutlass import CutlassNvFp4LinearKernel

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.kernel_check import Unit, check
from mixquant_agents.quant.numerics import e2m1, nvfp4
from mixquant_agents.quant.ops.sources import ExactRows, NormRows, PlainRows, RowSource
from mixquant_agents.quant.twins.calibrated import LayerCalibration
from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin, select_kernel

RECIPE = Recipe(activation_scales="4/6")
TAKING: list[type[NvFp4LinearKernel]] = [
    flashinfer.FlashInferCuteDslNvFp4LinearKernel,
    flashinfer.FlashInferCutlassNvFp4LinearKernel,
    CutlassNvFp4LinearKernel,
]
OTHERS: list[type[NvFp4LinearKernel]] = [
    vllm_linear.FlashInferB12xNvFp4LinearKernel,
    vllm_linear.FlashInferTrtllmNvFp4LinearKernel,
    vllm_linear.FlashInferCudnnNvFp4LinearKernel,
    vllm_linear.FbgemmNvFp4LinearKernel,
    vllm_linear.B12xNvFp4LinearKernel,
    vllm_linear.TorchNvFp4LinearKernel,
]


def grid(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What packed codes and swizzled scales stand for, without the global scale."""
    tiles = scales.view(torch.uint8).reshape(-1, scales.shape[1] // 4, 32, 4, 4).permute(0, 3, 2, 1, 4)
    laid = tiles.reshape(scales.shape).view(torch.float8_e4m3fn).float()
    m, count = codes.shape[0], codes.shape[1] // 8
    assert not laid[m:].any(), "padding must be zero"
    assert not laid[:, count:].any(), "padding must be zero"
    return e2m1.unpack(codes) * laid[:m, :count].repeat_interleave(16, dim=1)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """vLLM's own classes on a CPU, above a product that keeps what rows it was given."""
    rows: list[torch.Tensor] = []

    def product(
        a: torch.Tensor,
        b: torch.Tensor,
        block_scale_a: torch.Tensor,
        block_scale_b: torch.Tensor,
        alpha: torch.Tensor,
        out_dtype: torch.dtype,
        backend: str = "vllm",
    ) -> torch.Tensor:
        assert a.shape[1] == b.shape[1]
        assert a.is_contiguous()
        rows.append(grid(a, block_scale_a))
        return (rows[-1] @ grid(b, block_scale_b).T * alpha).to(out_dtype)

    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(_custom_ops, "cutlass_scaled_fp4_mm", product)
    monkeypatch.setattr(flashinfer, "flashinfer_scaled_fp4_mm", product)
    for kernel in (*TAKING, *OTHERS):
        monkeypatch.setattr(kernel, "is_supported", classmethod(lambda cls, capability=None: (True, None)))
    return rows


@pytest.fixture
def offered(seen: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> list[type[NvFp4LinearKernel]]:
    """vLLM's list, as its own selector goes through it."""
    kernels: list[type[NvFp4LinearKernel]] = []
    monkeypatch.setitem(vllm_linear._POSSIBLE_NVFP4_KERNELS, vllm_linear.current_platform._enum, kernels)
    return kernels


def weight_of(n: int, k: int) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1)).bfloat16()


def twin_of(kernel: type[NvFp4LinearKernel]) -> Nvfp4Twin:
    return Nvfp4Twin("nvfp4-native-a46", kernel(NvFp4LinearLayerConfig()), recipe=RECIPE)


@pytest.mark.parametrize("kernel", TAKING)
@pytest.mark.parametrize(("n", "k"), [(64, 128), (48, 80)], ids=["whole", "padded"])
@pytest.mark.parametrize("normed", [False, True])
def test_kernel_multiplies_rows_with_4_6_block_scales(
    kernel: type[NvFp4LinearKernel], n: int, k: int, normed: bool, seen: list[torch.Tensor]
) -> None:
    torch.manual_seed(0)
    weight, x, bias = weight_of(n, k), torch.randn(7, k).bfloat16(), torch.randn(n).bfloat16()
    calibration = LayerCalibration(activation_scale=0.25, channel_scale=torch.exp2(torch.arange(k) % 5 - 2.0))
    twin = twin_of(kernel)
    source: RowSource = NormRows(x, torch.rand(k).bfloat16() + 0.5, 1e-6) if normed else PlainRows(x)
    plain = source.rows()
    kept = ExactRows(torch.tensor([3, -1], dtype=torch.int32), torch.zeros(2, k, dtype=torch.bfloat16))
    out = twin.product(source, twin.build(weight, calibration), bias, kept)

    assert calibration.channel_scale is not None
    rows = nvfp4.quantize(plain * calibration.channel_scale.bfloat16(), torch.tensor(0.25), four_over_six=True)
    scaled = nvfp4.dequantize(rows)
    assert torch.equal(seen[-1][:, :k] / 0.25, scaled)
    assert not seen[-1][:, k:].any()
    assert torch.equal(kept.rows[0], plain[3])
    divided = calibration.divided(weight)
    own = nvfp4.dequantize(nvfp4.quantize(divided, nvfp4.tensor_global_scale(divided)))
    assert out.shape == (7, n)
    torch.testing.assert_close(out, (scaled @ own.T).bfloat16() + bias, rtol=2e-2, atol=2e-2)
    assert rows.scales.float().ne(nvfp4.quantize(plain, torch.tensor(0.25)).scales.float()).any()


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("kernel", TAKING)
def test_product_passes_the_check_at_start(kernel: type[NvFp4LinearKernel]) -> None:
    layer_format = LayerFormat(NumberFormat.NVFP4, emulated=False, recipe=RECIPE)
    weight, twin = weight_of(160, 64), twin_of(kernel)
    unit = Unit("model.layers.0.mlp.up_proj", layer_format, twin, weight, twin.build(weight))
    assert max(check([unit]).errors.values()) < 0.006


def test_kernels_that_take_no_quantized_rows_are_passed_over(offered: list[type[NvFp4LinearKernel]]) -> None:
    offered += OTHERS
    assert type(select_kernel()) is OTHERS[0], "of plain rows it is the first"
    for kernel in TAKING:
        offered.append(kernel)
        assert type(select_kernel(RECIPE)) is kernel
        offered.remove(kernel)
    twin = Nvfp4Twin(recipe=RECIPE)
    offered.append(CutlassNvFp4LinearKernel)
    twin.prepare()
    assert twin.status() == {"kernel": "CutlassNvFp4LinearKernel"}


def test_refusal_names_who_was_passed_over_and_the_remedy(offered: list[type[NvFp4LinearKernel]]) -> None:
    offered += [vllm_linear.FlashInferTrtllmNvFp4LinearKernel, vllm_linear.EmulationNvFp4LinearKernel]
    offered += [vllm_linear.FlashInferCudnnNvFp4LinearKernel]
    with pytest.raises(FormatRefusedError) as refused:
        select_kernel(RECIPE)
    message = str(refused.value)
    assert (
        "passed over FlashInferTrtllmNvFp4LinearKernel, FlashInferCudnnNvFp4LinearKernel: activations are quantized by "
        "vLLM alone, without 4/6 block scales" in message
    )
    assert "passed over EmulationNvFp4LinearKernel: no product in FP4" in message
    assert message.endswith("; leave activation_scales 'max', or use policy 'mixquant-fp8'")


def test_releases_without_quantized_inputs_have_vllms_own_kernel(
    offered: list[type[NvFp4LinearKernel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(NvFp4LinearKernel, "input_quant_key")
    monkeypatch.delattr(flashinfer.FlashInferCutlassNvFp4LinearKernel, "input_quant_key")
    offered += [flashinfer.FlashInferCutlassNvFp4LinearKernel, CutlassNvFp4LinearKernel]
    assert type(select_kernel(RECIPE)) is CutlassNvFp4LinearKernel


def test_another_key_is_not_ours(offered: list[type[NvFp4LinearKernel]], monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8DynamicTokenSym

    own: Any = lambda self: kFp8DynamicTokenSym  # noqa: E731 - a method
    monkeypatch.setattr(flashinfer.FlashInferCutlassNvFp4LinearKernel, "input_quant_key", own)
    offered += [flashinfer.FlashInferCutlassNvFp4LinearKernel]
    with pytest.raises(FormatRefusedError, match="leave activation_scales 'max'"):
        select_kernel(RECIPE)
