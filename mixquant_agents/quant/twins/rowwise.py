"""Native twins: FP8 (Ada, Hopper) and INT8 (Ampere to Hopper), per-channel weights and per-token activations; NVFP4
(Blackwell) through vLLM's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.quant.ops import linear as _ops  # noqa: F401 - registers torch.ops.mixquant.gpu_*
from mixquant_agents.quant.ops import rowwise_torch as reference
from mixquant_agents.quant.ops.gemm import scaled_product
from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin

__all__ = ["RowwiseTwin", "register"]


class RowwiseTwin:
    """8-bit codes ``[N, K]`` with one float32 scale per output channel ``[N, 1]``."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def check(self, n: int, k: int, prefix: str) -> None:
        """Refuse a shape that the matrix products do not take.

        Raises:
            FormatRefusedError: ``N`` or ``K`` is no multiple of 16.
        """
        if n % 16 or k % 16:
            raise FormatRefusedError(
                f"layer {prefix!r} has {n} outputs and {k} inputs on this rank; 8-bit products need multiples of 16: "
                f"add {prefix.rpartition('.')[2]!r} to ignored_layers, or use policy 'exact'"
            )

    def size(self, n: int, k: int) -> int:
        """Bytes of a twin of ``[N, K]``."""
        return n * k + 4 * n

    def build(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Codes and scales of ``weight``."""
        if weight.is_cuda:
            from mixquant_agents.quant.ops import rowwise_triton as kernels

            return kernels.quantize_rows(weight, self.dtype)
        return reference.quantize_rows(weight, self.dtype)

    def apply(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Every row of ``x`` ``[M, K]`` through the twin."""
        codes, scales = tensors
        if x.is_cuda:
            from mixquant_agents.quant.ops import rowwise_triton as kernels

            return scaled_product(*kernels.quantize_rows(x, self.dtype), codes, scales, x.dtype)
        return scaled_product(*reference.quantize_rows(x, self.dtype), codes, scales, x.dtype)


def register() -> None:
    """Make the native twins known to the plugin. Idempotent."""
    from mixquant_agents.quant.twins.base import register_twin

    register_twin("fp8-native", RowwiseTwin(torch.float8_e4m3fn))
    register_twin("int8-native", RowwiseTwin(torch.int8))
    register_twin("nvfp4-native", Nvfp4Twin())
