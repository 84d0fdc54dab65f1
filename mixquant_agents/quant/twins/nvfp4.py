"""NVFP4 twin through vLLM's own kernels (Blackwell): packed E2M1 codes, swizzled E4M3 block scales, one global scale.

Weights are quantized from the exact ones at load time by :mod:`mixquant_agents.quant.formats.nvfp4`; activations by
vLLM's kernel, with a global scale fixed at load, so that no row's rounding depends on another row (a scale of the whole
tensor would couple the requests of a batch). vLLM's selector picks the kernel. It falls back to Marlin, which
multiplies in 16 bits (W4A16), or to an emulation where there are no FP4 tensor cores: neither is taken.

Activations with 4/6 block scales are quantized by a kernel of ours (:mod:`mixquant_agents.quant.ops.nvfp4_triton`), and
vLLM's product reads what it wrote. Kernels of vLLM that take no such rows are passed over.

Written for and checked against vLLM's sources and its emulation on a CPU; it has not run on a Blackwell GPU.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.recipe import PLAIN, Recipe
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.ops.sources import ExactRows, RowSource
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration

__all__ = ["Holder", "Nvfp4Twin", "select_kernel"]

_REFUSED = ("A16", "Marlin", "Humming", "Emulation")
"""Kernels that do not multiply in FP4: weight-only ones, and software. Of the others the numbers are checked at start:
see :mod:`mixquant_agents.quant.kernel_check`."""

_CUTLASS = "CutlassNvFp4LinearKernel"
"""vLLM's own kernel has no form for rows already quantized, but its product can be called with them."""


class Holder(torch.nn.Module):  # type: ignore[misc] # torch is untyped here
    """What vLLM's NVFP4 kernels read of a layer, and the kernel."""

    weight: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(
        self,
        quantized: nvfp4.Nvfp4Tensor,
        kernel: Any,
        activation_scale: float = 1.0,
        channel_scale: torch.Tensor | None = None,
    ) -> None:
        """
        Args:
            quantized: the weight.
            kernel: vLLM's.
            activation_scale: the global scale of the layer's inputs, a power of two; encodes.
            channel_scale: what their channels are multiplied by first, float32 ``[K]``; ``None``: by 1.
        """
        super().__init__()
        scaled = None if channel_scale is None else channel_scale.to(quantized.packed.device)
        self.channel_scale = None if scaled is None else torch.nn.Parameter(scaled, requires_grad=False)
        n, k = quantized.packed.shape[0], quantized.columns
        encode = torch.tensor(activation_scale, dtype=torch.float32, device=quantized.packed.device)
        self.weight = torch.nn.Parameter(quantized.packed, requires_grad=False)
        self.weight_scale = torch.nn.Parameter(quantized.scales, requires_grad=False)
        # vLLM's names: the global scale here decodes, its inverse encodes.
        self.weight_global_scale = torch.nn.Parameter(1.0 / quantized.global_scale, requires_grad=False)
        self.input_global_scale = torch.nn.Parameter(1.0 / encode, requires_grad=False)
        self.input_global_scale_inv = torch.nn.Parameter(encode, requires_grad=False)
        self.alpha = torch.nn.Parameter(1.0 / quantized.global_scale * (1.0 / encode), requires_grad=False)
        self.output_size_per_partition = n
        self.input_size_per_partition = k
        self.logical_widths = [n]
        self.kernel = kernel
        kernel.process_weights_after_loading(self)


def select_kernel(recipe: Recipe = PLAIN) -> Any:
    """vLLM's NVFP4 kernel for this GPU: the first of its list that multiplies in FP4, and with 4/6 block scales of
    activations the first of those that take rows already quantized.

    Raises:
        FormatRefusedError: vLLM has none.
    """
    remedy = "use policy 'mixquant-fp8'"
    if recipe.activation_scales == "4/6":
        remedy = f"leave activation_scales 'max', or {remedy}"
    passed: dict[str, str] = {}
    while True:
        try:
            kernel = _vllm_kernel([*passed])
        except (ImportError, ValueError, AssertionError) as error:
            more = "".join(
                f"; passed over {', '.join(name for name in passed if passed[name] == reason)}: {reason}"
                for reason in dict.fromkeys(passed.values())
            )
            raise FormatRefusedError(f"vLLM has no NVFP4 kernel for this GPU ({error}{more}); {remedy}") from error
        name, reason = type(kernel).__name__, _unfit(kernel, recipe)
        if reason is None:
            return kernel
        if name in passed:  # vLLM is set to it, whatever is disabled
            raise FormatRefusedError(f"vLLM chose {name} for NVFP4: {reason}; {remedy}")
        passed[name] = reason


def _unfit(kernel: Any, recipe: Recipe) -> str | None:
    """Why a kernel is not taken; ``None``: it is."""
    if any(word in type(kernel).__name__ for word in _REFUSED):
        return "no product in FP4 (weight-only or software)"
    if recipe.activation_scales == "4/6" and not _takes_codes(kernel):
        return "activations are quantized by vLLM alone, without 4/6 block scales"
    return None


def _takes_codes(kernel: Any) -> bool:
    """Whether a kernel multiplies rows that are quantized already, their block scales in tiles of 128 x 4."""
    if type(kernel).__name__ == _CUTLASS:
        return True
    quant_key = getattr(kernel, "input_quant_key", None)  # kernels of earlier releases have none
    if quant_key is None:
        return False
    from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic

    return bool(quant_key() == kNvfp4Dynamic)


def _vllm_kernel(disabled: Sequence[str]) -> Any:
    """What vLLM's selector takes with these kernels disabled, beside those that the user disabled."""
    from vllm.model_executor.kernels import linear

    settings = linear.envs
    linear.envs = _Settings(settings, disabled)
    try:
        return linear.init_nvfp4_linear_kernel()
    finally:
        linear.envs = settings


class _Settings:
    """vLLM's settings, with more kernels disabled: the selector reads them at each call."""

    def __init__(self, settings: Any, disabled: Sequence[str]) -> None:
        self._settings = settings
        self._disabled = disabled

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._settings, name)
        return [*(value or ()), *self._disabled] if name == "VLLM_DISABLED_KERNELS" else value


class Nvfp4Twin(Twin[Holder]):
    """W4A4. The state is what vLLM's kernels want: a layer with packed codes uint8 ``[N', K'/2]``, block scales and
    global scales, as the kernel lays them out."""

    captured = True

    def __init__(self, name: str = "nvfp4-native", kernel: Any | None = None, *, recipe: Recipe = PLAIN) -> None:
        """
        Args:
            name: see :class:`~mixquant_agents.quant.twins.base.Twin`.
            kernel: vLLM's; selected when it is first needed where ``None``.
            recipe: how weights and activations are rounded.
        """
        self.name = name
        self._kernel = kernel
        self._recipe = recipe

    @property
    def build_key(self) -> Hashable:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return self.name, self._recipe

    def prepare(self) -> None:
        """Choose vLLM's kernel now, so that a GPU without one is refused before weights are loaded.

        Raises:
            FormatRefusedError: see :func:`select_kernel`.
        """
        if self._kernel is None:
            self._kernel = select_kernel(self._recipe)

    def check(self, n: int, k: int, prefix: str) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`: ``N`` and ``K`` must be multiples of 16."""
        if n % 16 or k % 16:
            raise FormatRefusedError(
                f"layer {prefix!r} has {n} outputs and {k} inputs on this rank; NVFP4 products need multiples of 16: "
                f"add {prefix.rpartition('.')[2]!r} to ignored_layers, or use policy 'exact'"
            )

    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`: half a byte a code, one a block of
        16, and a scale for each channel."""
        channel_scale = 0 if self._recipe.channel_scales == "none" else 4 * k
        return n * k // 2 + n * k // 16 + channel_scale

    def build(self, weight: torch.Tensor, calibration: LayerCalibration = UNCALIBRATED) -> Holder:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return self._hold(self._rounded(weight, calibration), calibration)

    def _rounded(self, weight: torch.Tensor, calibration: LayerCalibration) -> nvfp4.Nvfp4Tensor:
        if self._recipe.weight_rounding != "nearest" and not (calibration.twin is None and calibration.nearest):
            if calibration.twin is None:
                raise FormatRefusedError(
                    f"{self.name!r} needs a calibration with rounded twins: run mixquant calibrate"
                )
            return calibration.twin.to(weight.device)
        four_over_six = self._recipe.weight_scales == "4/6"
        divided = calibration.divided(weight)
        return nvfp4.quantize(divided, nvfp4.tensor_global_scale(divided, four_over_six), four_over_six)

    def adopt(
        self, weight: nvfp4.Nvfp4Tensor, dtype: torch.dtype, calibration: LayerCalibration = UNCALIBRATED
    ) -> Holder:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`.

        Raises:
            FormatRefusedError: the weight's fused parts have different global scales, of which the kernels take one.
        """
        if weight.global_scale.ndim:
            raise FormatRefusedError(
                "the prefill_checkpoint has different global scales in layers that vLLM runs as one (q, k, v; gate, "
                "up), and NVFP4 kernels take one; quantize it with shared scales, or leave it out"
            )
        return self._hold(weight, calibration)

    def _hold(self, quantized: nvfp4.Nvfp4Tensor, calibration: LayerCalibration) -> Holder:
        self.prepare()
        return Holder(quantized, self._kernel, calibration.activation_scale, calibration.channel_scale)

    def tensors(self, state: Holder) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return {name: parameter.data for name, parameter in state.named_parameters()}

    def product(
        self, source: RowSource, state: Holder, bias: torch.Tensor | None = None, exact: ExactRows | None = None
    ) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`. vLLM's kernels quantize activations themselves, but for
        those with 4/6 block scales."""
        if self._recipe.activation_scales == "4/6":
            return _product_of_codes(source, state, bias, exact)
        out: torch.Tensor = state.kernel.apply_weights(state, source.rows_with(exact, state.channel_scale), bias)
        return out

    def status(self) -> dict[str, Any]:
        """vLLM's kernel."""
        return {} if self._kernel is None else {"kernel": type(self._kernel).__name__}


def _product_of_codes(
    source: RowSource, state: Holder, bias: torch.Tensor | None, exact: ExactRows | None
) -> torch.Tensor:
    """The product of a kernel that :func:`_takes_codes`."""
    encode, dtype = state.input_global_scale_inv, source.x.dtype
    out: torch.Tensor
    if type(state.kernel).__name__ == _CUTLASS:
        from vllm._custom_ops import cutlass_scaled_fp4_mm

        codes, scales = source.four_over_six(encode, exact, state.channel_scale, 2 * state.weight.shape[1])
        out = cutlass_scaled_fp4_mm(codes, state.weight, scales, state.weight_scale, state.alpha, dtype)
        out = out[:, : state.output_size_per_partition].contiguous()
        return out if bias is None else out + bias
    from vllm.model_executor.layers.fusion.quant_activation import QuantizedActivation

    codes, scales = source.four_over_six(encode, exact, state.channel_scale)
    rows = QuantizedActivation(
        data=codes,
        scale=scales,
        orig_dtype=dtype,
        orig_shape=torch.Size((codes.shape[0], state.input_size_per_partition)),
        quant_key=state.kernel.input_quant_key(),
    )
    out = state.kernel.apply_weights(state, rows, bias)
    return out
