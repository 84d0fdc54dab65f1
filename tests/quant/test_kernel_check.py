"""Right products pass the check at start, and wrong ones are refused by their numbers, whatever they are called."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.kernels import linear as vllm_linear
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearLayerConfig
from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.precision.resolve import LayerFormat, PartFormats
from mixquant_agents.quant.kernel_check import LIMIT, Unit, check, first_of_each_shape, units_of
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration
from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin, select_kernel
from mixquant_agents.quant.twins.parts import PartsTwin, Segment
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

NVFP4, FP8, INT8 = (LayerFormat(NumberFormat(name), emulated=False) for name in ("nvfp4", "fp8", "int8"))


class RightKernel(EmulationNvFp4LinearKernel):  # type: ignore[misc] # vllm is untyped here
    """Called as vLLM calls its own, and right."""

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return super().apply_weights(layer, x.float(), bias).to(x.dtype)


def sixteen_bits(layer: Any, x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """W4A16: activations are not rounded."""
    q = nvfp4.Nvfp4Tensor(layer.weight, layer.weight_scale, 1 / layer.weight_global_scale, layer.weight.shape[1] * 2)
    return x @ nvfp4.dequantize(q, x.dtype).T


def last_row_lost(layer: Any, x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    right[-1] = 0
    return right


def last_outputs_shifted(layer: Any, x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cat([right[:, :-16], right[:, -16:].roll(1, dims=1)], dim=1)


def zero_row_dirty(layer: Any, x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    right[x.abs().amax(1) == 0] = 1e-6
    return right


WRONG: list[Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]] = [
    sixteen_bits,
    last_row_lost,
    last_outputs_shifted,
    zero_row_dirty,
    lambda layer, x, right: right * 1.1,
    lambda layer, x, right: torch.zeros_like(right),
    lambda layer, x, right: right.masked_fill(right == right[5, 7], torch.nan),
    lambda layer, x, right: right + x.new_full((), 5.0),
]


class WrongKernel(RightKernel):
    """A fault of a kernel, behind a harmless name."""

    def __init__(self, fault: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(NvFp4LinearLayerConfig())
        self.fault = fault

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.fault(layer, x, super().apply_weights(layer, x, bias))


def right_kernel() -> RightKernel:
    return RightKernel(NvFp4LinearLayerConfig())


def weight_of(n: int = 160, k: int = 64, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1)).to(dtype)


def unit_of(twin: Any, layer_format: LayerFormat, weight: torch.Tensor, known: LayerCalibration = UNCALIBRATED) -> Unit:
    return Unit("model.layers.0.mlp.up_proj", layer_format, twin, weight, twin.build(weight, known), known)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [2.0**-4, 1.0, 2.0**7])
def test_right_nvfp4_kernel_passes(dtype: torch.dtype, scale: float) -> None:
    known = LayerCalibration(activation_scale=scale)
    found = check([unit_of(Nvfp4Twin(kernel=right_kernel()), NVFP4, weight_of(dtype=dtype), known)])
    assert list(found.errors) == ["nvfp4-native 160x64"]
    assert found.errors["nvfp4-native 160x64"] < 0.006
    assert found.seconds > 0
    assert found.status() == {
        "kernel_errors": {"nvfp4-native 160x64": pytest.approx(max(found.errors.values()), rel=0.1)}
    }


@pytest.mark.parametrize("recipe", [Recipe(weight_scales="4/6"), Recipe("gptq")], ids=["4/6", "gptq"])
def test_right_kernel_passes_with_weights_of_other_recipes(recipe: Recipe) -> None:
    weight = weight_of()
    rounded = nvfp4.quantize(weight + 0.01, nvfp4.tensor_global_scale(weight + 0.01))
    layer_format = LayerFormat(NumberFormat.NVFP4, emulated=False, recipe=recipe)
    twin = Nvfp4Twin(layer_format.name, right_kernel(), recipe=recipe)
    assert (
        max(check([unit_of(twin, layer_format, weight, LayerCalibration(0.5, None, rounded))]).errors.values()) < 0.006
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layer_format", [FP8, INT8], ids=lambda each: each.name)
def test_right_8_bit_products_pass(layer_format: LayerFormat, dtype: torch.dtype) -> None:
    codes = torch.int8 if layer_format is INT8 else torch.float8_e4m3fn
    twin = RowwiseTwin(layer_format.name, codes, "cutlass")
    assert max(check([unit_of(twin, layer_format, weight_of(dtype=dtype))]).errors.values()) < 0.006


@pytest.mark.parametrize("fault", WRONG, ids=[getattr(each, "__name__", "") for each in WRONG])
def test_wrong_nvfp4_kernel_is_refused_by_its_numbers(
    fault: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    unit = unit_of(Nvfp4Twin(kernel=WrongKernel(fault)), NVFP4, weight_of())
    with pytest.raises(FormatRefusedError, match=r"WrongKernel.*up_proj.*160x64.*VLLM_DISABLED_KERNELS=WrongKernel"):
        check([unit])


@pytest.mark.parametrize("layer_format", [FP8, INT8], ids=lambda each: each.name)
def test_wrong_8_bit_product_is_refused(layer_format: LayerFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.int8 if layer_format is INT8 else torch.float8_e4m3fn
    twin = RowwiseTwin(layer_format.name, codes, "cutlass")
    unit, right = unit_of(twin, layer_format, weight_of()), twin.product
    monkeypatch.setattr(twin, "product", lambda source, state: right(source, state).flip(0))
    with pytest.raises(FormatRefusedError, match=rf"{layer_format.name} 160x64.*limit {LIMIT}"):
        check([unit])


def test_product_wrong_for_many_rows_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels work by tiles, and few rows may have a product of their own."""
    twin = RowwiseTwin(FP8.name, torch.float8_e4m3fn, "torch")
    unit, right = unit_of(twin, FP8, weight_of()), twin.product
    monkeypatch.setattr(
        twin, "product", lambda source, state: right(source, state) * (1.1 if len(source.rows()) > 500 else 1)
    )
    with pytest.raises(FormatRefusedError, match="is wrong on this device"):
        check([unit])


def test_product_that_does_not_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = RowwiseTwin(FP8.name, torch.float8_e4m3fn, "torch")
    unit = unit_of(twin, FP8, weight_of())

    def product(source: Any, state: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(twin, "product", product)
    with pytest.raises(FormatRefusedError, match="does not run on this device: no kernel image is available; use"):
        check([unit])


def test_twin_of_a_checkpoint_is_held_against_the_checkpoint() -> None:
    """Its codes are not those that the exact weight rounds to."""
    weight = weight_of()
    read = nvfp4.quantize(weight * 1.2, nvfp4.tensor_global_scale(weight * 1.2))
    twin = Nvfp4Twin(kernel=right_kernel())
    layer: Any = SimpleNamespace(
        prefix="a.o_proj", layer_format=NVFP4, twin=twin, weight=weight, state=twin.adopt(read, weight.dtype)
    )
    assert max(check(units_of(layer, UNCALIBRATED, read)).errors.values()) < 0.006
    with pytest.raises(FormatRefusedError, match="is wrong"):
        check(units_of(layer))


def test_default_device_and_dtype_do_not_matter() -> None:
    """vLLM sets both while it builds a model."""
    unit = unit_of(RowwiseTwin(FP8.name, torch.float8_e4m3fn, "torch"), FP8, weight_of())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            assert max(check([unit]).errors.values()) < 0.006
    finally:
        torch.set_default_dtype(before)


def test_segments_of_a_split_layer_are_checked_each() -> None:
    weight = weight_of(128)
    formats = PartFormats((NVFP4, FP8, FP8))
    fp8 = RowwiseTwin("fp8-native", torch.float8_e4m3fn, "torch")

    def layer_with(kernel: Any) -> Any:
        parts = (Segment(Nvfp4Twin(kernel=kernel), 64, range(1)), Segment(fp8, 64, range(1, 3)))
        twin = PartsTwin(formats.name, parts)
        return SimpleNamespace(
            prefix="a.qkv_proj",
            layer_format=formats,
            twin=twin,
            weight=weight,
            state=twin.build(weight),
            shape=tuple(weight.shape),
        )

    right = layer_with(right_kernel())
    assert set(check(units_of(right)).errors) == {"nvfp4-native 64x64", "fp8-native 64x64"}
    assert first_of_each_shape([right, right]) == [right]
    with pytest.raises(FormatRefusedError, match="nvfp4-native 64x64"):
        check(units_of(layer_with(WrongKernel(sixteen_bits))))


class FlashInferCuteDslNvFp4W4A16LinearKernel(RightKernel):
    """Weight-only, by its name."""


class MarlinNvFp4LinearKernel(RightKernel):
    """Weight-only, by its name."""


class CutlassNvFp4LinearKernel(RightKernel):
    """Multiplies in FP4, by its name."""


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[type[RightKernel]]:
    """vLLM's list, as its own selector goes through it."""
    kernels: list[type[RightKernel]] = []
    platform = vllm_linear.current_platform._enum
    monkeypatch.setitem(vllm_linear._POSSIBLE_NVFP4_KERNELS, platform, kernels)
    return kernels


def test_next_kernel_of_vllms_list_is_taken(offered: list[type[RightKernel]]) -> None:
    settings = vllm_linear.envs
    offered += [FlashInferCuteDslNvFp4W4A16LinearKernel, MarlinNvFp4LinearKernel, CutlassNvFp4LinearKernel]
    assert type(select_kernel()) is CutlassNvFp4LinearKernel
    assert vllm_linear.envs is settings, "vLLM's settings are its own again"


def test_weight_only_kernels_alone_are_refused(offered: list[type[RightKernel]]) -> None:
    offered += [FlashInferCuteDslNvFp4W4A16LinearKernel, MarlinNvFp4LinearKernel]
    with pytest.raises(FormatRefusedError, match=r"passed over FlashInferCuteDslNvFp4W4A16LinearKernel, Marlin.*fp8"):
        select_kernel()


def test_kernel_the_user_disabled_stays_disabled(
    offered: list[type[RightKernel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    offered += [MarlinNvFp4LinearKernel, CutlassNvFp4LinearKernel]
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "CutlassNvFp4LinearKernel")
    with pytest.raises(FormatRefusedError, match="mixquant-fp8"):
        select_kernel()
