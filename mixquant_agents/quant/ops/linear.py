"""The routed operations on a GPU: opaque to ``torch.compile``, so a captured graph holds one mode and nothing else.

``torch.ops.mixquant``:

- ``gpu_linear(x, weight, bias)``: ``[M, K] -> [M, N]``
- ``gpu_norm_linear(x, gamma, eps, weight, bias)``: the same of ``rms_norm(x) * gamma``
- ``gpu_add_norm_linear(x, residual, gamma, eps, weight, bias)``: of ``rms_norm(x + residual) * gamma``; also the sum
- ``gpu_silu_linear(x, weight, bias)``: of ``silu(gate) * up``, ``x`` is ``[M, 2K]``

``weight`` ``[N, K]`` is the exact one; its twin is found by it (see ``held``). A linear layer emits ``gpu_linear``;
:mod:`~mixquant_agents.quant.ops.fusion` puts the fused forms in.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import linear

from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.ops import rowwise_torch as reference
from mixquant_agents.quant.ops.gemm import scaled_product
from mixquant_agents.quant.step import Step, current
from mixquant_agents.quant.twins.registry import Held, twin_of

__all__ = ["gpu_add_norm_linear", "gpu_linear", "gpu_norm_linear", "gpu_silu_linear"]

Quantize = Callable[[torch.dtype, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]


def _kernels(x: Tensor) -> ModuleType:
    if not x.is_cuda:
        return reference
    from mixquant_agents.quant.ops import rowwise_triton as kernels

    return kernels


def _mixed(x: Tensor, index: Tensor, quantize: Quantize, weight: Tensor, twin: Held, bias: Tensor | None) -> Tensor:
    slot = x.new_empty(index.shape[0], weight.shape[1])
    out = scaled_product(*quantize(twin.codes.dtype, index, slot), twin.codes, twin.scales, x.dtype, bias)
    _kernels(x).scatter_rows(linear(slot, weight, bias), index, out)
    return out


def _run(x: Tensor, exact: Callable[[], Tensor], quantize: Quantize, weight: Tensor, bias: Tensor | None) -> Tensor:
    step = current(x.shape[0])
    if step.mode is Mode.EXACT:
        return linear(exact(), weight, bias)
    twin = twin_of(weight)
    if twin.codes.dtype == torch.uint8:
        return _run_nvfp4(exact(), step, weight, twin.codes, bias)
    if step.mode is Mode.QUANTIZED or step.index is None:
        return scaled_product(*quantize(twin.codes.dtype, None, None), twin.codes, twin.scales, x.dtype, bias)
    return _mixed(x, step.index, quantize, weight, twin, bias)


def _run_nvfp4(rows: Tensor, step: Step, weight: Tensor, codes: Tensor, bias: Tensor | None) -> Tensor:
    """vLLM's kernels quantize activations themselves, so ``rows`` come unquantized."""
    from mixquant_agents.quant.twins.nvfp4 import product

    out = product(rows, codes, bias)
    if step.mode is Mode.MIXED and step.index is not None:
        picked = rows.index_select(0, step.index.clamp_min(0))
        _kernels(rows).scatter_rows(linear(picked, weight, bias), step.index, out)
    return out


def gpu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See the module."""
    kernels = _kernels(x)
    return _run(x, lambda: x, lambda dtype, index, slot: kernels.quantize_rows(x, dtype, index, slot), weight, bias)


def gpu_norm_linear(x: Tensor, gamma: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See the module."""
    kernels = _kernels(x)
    return _run(
        x,
        lambda: kernels.norm_rows(x, None, gamma, eps)[0],
        lambda dtype, index, slot: kernels.norm_quantize_rows(x, None, gamma, eps, dtype, index, slot)[:2],
        weight, bias,
    )  # fmt: skip


def gpu_add_norm_linear(
    x: Tensor, residual: Tensor, gamma: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See the module."""
    kernels = _kernels(x)
    total: Tensor = residual

    def exact() -> Tensor:
        nonlocal total
        y, total = kernels.norm_rows(x, residual, gamma, eps)
        return y

    def quantize(dtype: torch.dtype, index: Tensor | None, slot: Tensor | None) -> tuple[Tensor, Tensor]:
        nonlocal total
        rows, row_scales, total = kernels.norm_quantize_rows(x, residual, gamma, eps, dtype, index, slot)
        return rows, row_scales

    out = _run(x, exact, quantize, weight, bias)
    return out, total


def gpu_silu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See the module."""
    kernels = _kernels(x)
    return _run(x, lambda: kernels.silu_rows(x),
                lambda dtype, index, slot: kernels.silu_quantize_rows(x, dtype, index, slot), weight, bias)  # fmt: skip


_WEIGHT = "Tensor weight, Tensor? bias"
_library = torch.library.Library("mixquant", "FRAGMENT")
_library.define(f"gpu_linear(Tensor x, {_WEIGHT}) -> Tensor")
_library.define(f"gpu_norm_linear(Tensor x, Tensor gamma, float eps, {_WEIGHT}) -> Tensor")
_library.define(
    f"gpu_add_norm_linear(Tensor x, Tensor residual, Tensor gamma, float eps, {_WEIGHT}) -> (Tensor, Tensor)"
)
_library.define(f"gpu_silu_linear(Tensor x, {_WEIGHT}) -> Tensor")


def _fake(x: Tensor, *rest: object) -> Tensor:
    weight = rest[-2]
    assert isinstance(weight, torch.Tensor)  # noqa: S101 - for the type checker; torch checked the schema
    return x.new_empty(x.shape[0], weight.shape[0])


def _fake_pair(x: Tensor, residual: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return _fake(x, *rest), torch.empty_like(residual)


for _op in (gpu_linear, gpu_norm_linear, gpu_add_norm_linear, gpu_silu_linear):
    for _key in ("CPU", "CUDA"):
        _library.impl(_op.__name__, _op, _key)
    _library._register_fake(_op.__name__, _fake_pair if _op is gpu_add_norm_linear else _fake)
