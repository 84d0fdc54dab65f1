"""The routed operations, opaque to ``torch.compile``, so that a captured graph holds one mode and nothing else.

``torch.ops.mixquant``:

- ``gpu_linear(x, weight, bias)``: ``[M, K] -> [M, N]``
- ``gpu_norm_linear(x, gamma, eps, weight, bias)``: the same of ``rms_norm(x) * gamma``
- ``gpu_add_norm_linear(x, residual, gamma, eps, weight, bias)``: of ``rms_norm(x + residual) * gamma``; also the sum
- ``gpu_silu_linear(x, weight, bias)``: of ``silu(gate) * up``, ``x`` is ``[M, 2K]``

``weight`` ``[N, K]`` is the exact one, or the codes of a storage that holds it and its twin; the twin is found by it
(see :mod:`mixquant_agents.quant.twins.registry`). A linear layer emits ``gpu_linear``;
:mod:`~mixquant_agents.quant.ops.fusion` puts the fused forms in. What each computes, row by row::

    for row in range(M):
        quantize = mode is QUANTIZED or (mode is MIXED and row not in exact_rows)
        out[row] = (twin if quantize else weight) @ source[row] + bias
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.ops.sources import AddNormRows, ExactRows, NormRows, PlainRows, RowSource, SiluRows
from mixquant_agents.quant.twins.registry import lookup
from mixquant_agents.quant.vllm.context import current_step

__all__ = ["gpu_add_norm_linear", "gpu_linear", "gpu_norm_linear", "gpu_silu_linear"]


def _run(source: RowSource, weight: Tensor, bias: Tensor | None) -> Tensor:
    step = current_step(source.x.shape[0])
    if step.mode is Mode.EXACT and weight.dtype is source.x.dtype:
        return linear(source.rows(), weight, bias)
    held = lookup(weight)
    if step.mode is Mode.EXACT:  # the twin holds the exact weight too
        return held.twin.exact(source.rows(), weight, held.state, bias)
    if step.few_rows:
        return held.twin.few_rows(source, held.state, bias)
    if step.mode is Mode.QUANTIZED or step.exact_rows is None:
        return held.twin.product(source, held.state, bias)
    index = step.exact_rows
    exact = ExactRows(index, source.x.new_empty(index.shape[0], weight.shape[1]))
    out = held.twin.product(source, held.state, bias, exact)
    source.kernels.scatter_rows(held.twin.exact(exact.rows, weight, held.state, bias), index, out)
    return out


def gpu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See the module."""
    return _run(PlainRows(x), weight, bias)


def gpu_norm_linear(x: Tensor, gamma: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See the module."""
    return _run(NormRows(x, gamma, eps), weight, bias)


def gpu_add_norm_linear(
    x: Tensor, residual: Tensor, gamma: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See the module."""
    source = AddNormRows(x, residual, gamma, eps)
    return _run(source, weight, bias), source.total


def gpu_silu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See the module."""
    return _run(SiluRows(x), weight, bias)


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
