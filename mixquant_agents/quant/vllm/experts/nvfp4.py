"""Native NVFP4 twin of experts, through vLLM's own CUTLASS kernel (Blackwell).

Weights are rounded as in dense layers: one global scale for each of an expert's two weights, block scales below it.
Activations have the global scale 1: a calibration knows no expert's inputs, and with 1 no row depends on another.

Written for and checked against vLLM's sources; it has not run on a Blackwell GPU. What it computes is held against its
emulation at start, before the first request.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.quant.experts.layer import ExpertRows, ExpertShape, ExpertsLayer, ExpertWeights
from mixquant_agents.quant.experts.twin import ExpertsTwin
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.vllm.experts.kernels import modular_kernel, run_kernel

__all__ = ["ExpertFp4", "Nvfp4Experts"]


class ExpertFp4(NamedTuple):
    """Weights in 4 bits, and vLLM's kernel that reads them.

    Attributes:
        up, down: packed codes, uint8 ``[E, U, H/2]`` and ``[E, H, I/2]``.
        up_scales, down_scales: block scales, E4M3, as the kernel lays them out.
        up_alpha, down_alpha: float32 ``[E]``, multiply the products.
        kernel: vLLM's.
    """

    up: torch.Tensor
    up_scales: torch.Tensor
    up_alpha: torch.Tensor
    down: torch.Tensor
    down_scales: torch.Tensor
    down_alpha: torch.Tensor
    kernel: Any


class Nvfp4Experts(ExpertsTwin[ExpertFp4]):
    """W4A4."""

    captured = True

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.name = name
        self._recipe = recipe

    @property
    def build_key(self) -> Hashable:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        return self.name, self._recipe

    def prepare(self, layer: ExpertsLayer) -> None:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        from vllm.model_executor.layers.fused_moe.experts.cutlass_moe import CutlassExpertsFp4
        from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEActivationFormat
        from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic, kNvfp4Static

        shape, reason = layer.shape, None
        if shape.up % 128 or shape.hidden % 128 or shape.inner % 64:
            reason = (
                f"experts of {shape.hidden} inputs and {shape.inner} inner values on this rank (it takes multiples of "
                "128 and 64)"
            )
        elif layer.own.moe_config.has_bias:
            reason = "biases"
        elif layer.weight_on_input:
            reason = "the router's weight on an expert's input"
        elif self._recipe.activation_scales != "max":
            reason = f"activation_scales={self._recipe.activation_scales!r} (it quantizes activations itself)"
        elif self._recipe.needs_calibration:
            reason = "weights rounded by a calibration, which knows Linear layers alone"
        else:
            supported, why = CutlassExpertsFp4.is_supported_config(
                CutlassExpertsFp4, layer.own.moe_config, kNvfp4Static, kNvfp4Dynamic, FusedMoEActivationFormat.Standard
            )
            reason = None if supported else f"this layer ({why})"
        if reason is not None:
            raise FormatRefusedError(
                f"vLLM's NVFP4 kernel for the experts of {layer.prefix!r} does not take {reason}: give formats "
                "{'experts': 'fp8'}, add 're:.*experts' to ignored_layers, or use policy 'mixquant-fp8'"
            )

    def nbytes(self, shape: ExpertShape, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`: half a byte a code, one a block of 16."""
        return shape.numel // 2 + shape.numel // 16 + 8 * shape.experts

    def build(self, weights: ExpertWeights, layer: ExpertsLayer) -> ExpertFp4:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        up, down = ([self._rounded(expert) for expert in each] for each in (weights.up, weights.down))
        return self._held(up, down, layer)

    def _rounded(self, weight: torch.Tensor) -> nvfp4.Nvfp4Tensor:
        four_over_six = self._recipe.weight_scales == "4/6"
        return nvfp4.quantize(weight, nvfp4.tensor_global_scale(weight, four_over_six), four_over_six)

    def adopt(
        self,
        up: Sequence[nvfp4.Nvfp4Tensor],
        down: Sequence[nvfp4.Nvfp4Tensor],
        weights: ExpertWeights,
        layer: ExpertsLayer,
    ) -> ExpertFp4:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`.

        Raises:
            FormatRefusedError: an expert's gate and up projections have different global scales.
        """
        if any(each.global_scale.ndim for each in (*up, *down)):
            raise FormatRefusedError(
                f"the prefill_checkpoint has different global scales for gate and up projections of experts of "
                f"{layer.prefix!r}, and the NVFP4 kernel takes one; quantize it with shared scales, or leave it out"
            )
        return self._held(up, down, layer)

    def _held(
        self, up: Sequence[nvfp4.Nvfp4Tensor], down: Sequence[nvfp4.Nvfp4Tensor], layer: ExpertsLayer
    ) -> ExpertFp4:
        from vllm.model_executor.layers.fused_moe.config import nvfp4_moe_quant_config
        from vllm.model_executor.layers.fused_moe.experts.cutlass_moe import CutlassExpertsFp4
        from vllm.model_executor.layers.quantization.utils.nvfp4_utils import swizzle_blockscale

        (up_codes, up_scales, up_alpha), (down_codes, down_scales, down_alpha) = (
            (
                torch.stack([each.packed for each in experts]),
                swizzle_blockscale(torch.stack([each.scales for each in experts])),
                torch.stack([1.0 / each.global_scale.reshape(()) for each in experts]),
            )
            for experts in (up, down)
        )
        ones = torch.ones_like(up_alpha)
        config = nvfp4_moe_quant_config(
            g1_alphas=up_alpha,
            g2_alphas=down_alpha,
            a1_gscale=ones,
            a2_gscale=ones,
            w1_scale=up_scales,
            w2_scale=down_scales,
        )
        kernel = modular_kernel(CutlassExpertsFp4, config, layer.own)
        return ExpertFp4(up_codes, up_scales, up_alpha, down_codes, down_scales, down_alpha, kernel)

    def tensors(self, state: ExpertFp4) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        return {name: tensor for name, tensor in state._asdict().items() if name != "kernel"}

    def product(self, rows: ExpertRows, state: ExpertFp4, layer: ExpertsLayer) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        return run_kernel(state.kernel, state.up, state.down, rows, layer.own)

    def status(self) -> dict[str, Any]:
        """vLLM's kernel."""
        return {"experts": {"kernel": "CutlassExpertsFp4"}}
