"""A mixture's two products in FP8, for many rows: rows sorted by expert, tiles fetched by the copy engine.

vLLM's grouped kernel (``fused_moe_kernel``) writes gate and up parts in 16 bits, which another kernel reads, and
fetches weights by pointers. Here the first product ends with the activation, so half as much is written and read again,
and what lies between the products stays in the order of experts, so that the second product's rows are fetched as
boxes, as weights are.

- :func:`up_rows`         codes ``[M, H]`` -> activations ``[P, I]``, sorted
- :func:`quantize_sorted` ``[P, I]`` -> codes, one scale a row
- :func:`down_rows`       codes ``[P, I]`` -> ``[M, T, H]``, each times the router's weight
- :func:`sum_chosen`      ``[M, T, H]`` -> ``[M, H]``

``order`` is vLLM's ``moe_align_block_size``: numbers ``row * T + choice`` sorted by expert, each expert's share filled
up to a multiple of the tile with ``M * T``; the expert of each tile; how many places are in use. A row's bits depend on
that row alone: no sum runs over rows.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Triton compiles the kernels from their source: types there are its own, and annotations would be read as its own.
# ruff: noqa: N803 - Triton's own habit: sizes and compile-time constants in capitals
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from mixquant_agents.quant.ops.rowwise_triton import TINY, activated

__all__ = ["Order", "Tile", "down_rows", "quantize_sorted", "sum_chosen", "up_rows"]

_GROUP = 16
"""Row tiles that run together on one tile of weights."""

_FP8_LIMIT = 448.0


class Tile(NamedTuple):
    """How a product is cut: outputs of a tile (of gate and up each), inputs of a step, warps, steps in flight."""

    outputs: int
    inputs: int
    warps: int
    stages: int


class Order(NamedTuple):
    """Rows sorted by expert; see the module.

    Attributes:
        places: int32 ``[P]``.
        experts: int32 ``[P / rows]``.
        used: int32 ``[1]``.
        rows: of a tile.
    """

    places: torch.Tensor
    experts: torch.Tensor
    used: torch.Tensor
    rows: int


@triton.jit
def _tile(used, COLUMNS: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr):
    """Row and column tile of this program, and whether it has any: groups of row tiles share the weights' tiles."""
    program = tl.program_id(0)
    row_tiles = tl.cdiv(tl.load(used), ROWS)
    group = program // (GROUP * COLUMNS)
    first = group * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    inside = program - group * GROUP * COLUMNS
    size = tl.maximum(size, 1)
    return first + inside % size, inside // size, program < row_tiles * COLUMNS


@triton.jit(do_not_specialize=["count"])
def _up(
    x, x_scales, weight, weight_scales, places, experts, used, out, count,
    H: tl.constexpr, INNER: tl.constexpr, CHOSEN: tl.constexpr, GELU: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile, any_work = _tile(used, (INNER + OUTPUTS - 1) // OUTPUTS, ROWS, GROUP)
    if not any_work:
        return
    position = row_tile * ROWS + tl.arange(0, ROWS)
    token = tl.minimum(tl.load(places + position), count - 1) // CHOSEN  # places that fill up: some row, not used
    expert = tl.load(experts + row_tile)
    inner = tl.arange(0, INPUTS)
    source = x + token.to(tl.int64)[:, None] * H + inner[None, :]
    gate_row = expert * (2 * INNER) + column_tile * OUTPUTS
    gate = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    up = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for begin in range(0, H, INPUTS):
        a = tl.load(source + begin)
        gate_codes = weight.load([gate_row, begin])
        up_codes = weight.load([gate_row + INNER, begin])
        gate = tl.dot(a, gate_codes.T, gate)
        up = tl.dot(a, up_codes.T, up)
    column = column_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    valid = column < INNER
    row_scale = tl.load(x_scales + token)[:, None]
    scales = weight_scales + expert * (2 * INNER) + column
    gate = gate * row_scale * tl.load(scales, mask=valid, other=0.0)[None, :]
    up = up * row_scale * tl.load(scales + INNER, mask=valid, other=0.0)[None, :]
    y = (activated(gate, GELU) * up).to(out.dtype.element_ty)
    target = out + position.to(tl.int64)[:, None] * INNER + column[None, :]
    tl.store(target, y, mask=valid[None, :])


@triton.jit
def _quantize(x, used, codes, scales, K: tl.constexpr, LIMIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS >= tl.load(used):
        return
    column = tl.arange(0, BLOCK)
    valid = (column < K)[None, :]
    at = row.to(tl.int64)[:, None] * K + column[None, :]
    y = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(y), axis=1), TINY)
    tl.store(scales + row, tl.div_rn(largest, LIMIT))
    q = y * tl.div_rn(LIMIT, largest)[:, None]
    q = tl.minimum(tl.maximum(q, -LIMIT), LIMIT)
    tl.store(codes + at, q.to(tl.float8e4nv), mask=valid)


@triton.jit(do_not_specialize=["count"])
def _down(
    codes, scales, weight, weight_scales, router, places, experts, used, out, count,
    H: tl.constexpr, INNER: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile, any_work = _tile(used, (H + OUTPUTS - 1) // OUTPUTS, ROWS, GROUP)
    if not any_work:
        return
    expert = tl.load(experts + row_tile)
    weight_row = expert * H + column_tile * OUTPUTS
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for begin in range(0, INNER, INPUTS):
        a = codes.load([row_tile * ROWS, begin])
        b = weight.load([weight_row, begin])
        total = tl.dot(a, b.T, total)
    position = row_tile * ROWS + tl.arange(0, ROWS)
    place = tl.load(places + position)
    real = place < count
    column = column_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    valid = column < H
    row_scale = tl.load(scales + position) * tl.load(router + place, mask=real, other=0.0)
    total = total * row_scale[:, None] * tl.load(weight_scales + expert * H + column, mask=valid, other=0.0)[None, :]
    target = out + place.to(tl.int64)[:, None] * H + column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=real[:, None] & valid[None, :])


@triton.jit
def _sum(x, out, H: tl.constexpr, CHOSEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = column < H
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for choice in tl.static_range(CHOSEN):
        total += tl.load(x + (row * CHOSEN + choice) * H + column, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + row * H + column, total.to(out.dtype.element_ty), mask=valid)


def up_rows(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    order: Order,
    out: torch.Tensor,
    chosen: int,
    tile: Tile,
    gelu: bool = False,
) -> None:
    """The first product and the activation.

    Args:
        codes: E4M3 ``[M, H]``, contiguous; ``H`` a multiple of ``tile.inputs``.
        scales: float32 ``[M, 1]``.
        weight: E4M3 ``[E, 2 I, H]``, contiguous: gate, then up.
        weight_scales: float32 ``[E, 2 I, 1]``.
        order: of the rows.
        out: ``[P, I]``, filled where a place is in use.
        chosen: experts of a row.
        tile: how the product is cut.
        gelu: the activation is GELU's tanh form instead of SiLU.
    """
    experts, both, hidden = weight.shape
    boxes = TensorDescriptor.from_tensor(weight.view(experts * both, hidden), [tile.outputs, tile.inputs])
    grid = (order.experts.shape[0] * triton.cdiv(both // 2, tile.outputs),)
    _up[grid](
        codes, scales, boxes, weight_scales, order.places, order.experts, order.used, out, codes.shape[0] * chosen,
        H=hidden, INNER=both // 2, CHOSEN=chosen, GELU=gelu, ROWS=order.rows, OUTPUTS=tile.outputs,
        INPUTS=tile.inputs, GROUP=_GROUP, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def quantize_sorted(x: torch.Tensor, order: Order) -> tuple[torch.Tensor, torch.Tensor]:
    """``[P, I]`` to E4M3 codes and float32 scales ``[P, 1]``; where no place is in use, they hold anything."""
    places, inner = x.shape
    codes = torch.empty(places, inner, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(places, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(inner)
    rows = min(max(1, 4096 // block), order.rows)
    _quantize[(triton.cdiv(places, rows),)](
        x, order.used, codes, scales, K=inner, LIMIT=_FP8_LIMIT, ROWS=rows, BLOCK=block
    )
    return codes, scales


def down_rows(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    router: torch.Tensor,
    order: Order,
    out: torch.Tensor,
    tile: Tile,
) -> None:
    """The second product.

    Args:
        codes: E4M3 ``[P, I]``, contiguous, sorted.
        scales: float32 ``[P, 1]``.
        weight: E4M3 ``[E, H, I]``, contiguous.
        weight_scales: float32 ``[E, H, 1]``.
        router: float32 ``[M, T]``, the weight of each choice.
        order: of the rows.
        out: ``[M, T, H]``, contiguous.
        tile: how the product is cut.
    """
    experts, hidden, inner = weight.shape
    sources = TensorDescriptor.from_tensor(codes, [order.rows, tile.inputs])
    boxes = TensorDescriptor.from_tensor(weight.view(experts * hidden, inner), [tile.outputs, tile.inputs])
    grid = (order.experts.shape[0] * triton.cdiv(hidden, tile.outputs),)
    _down[grid](
        sources, scales, boxes, weight_scales, router, order.places, order.experts, order.used, out, router.numel(),
        H=hidden, INNER=inner, ROWS=order.rows, OUTPUTS=tile.outputs, INPUTS=tile.inputs, GROUP=_GROUP,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def sum_chosen(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out`` ``[M, H]`` is the sum of ``x`` ``[M, T, H]`` over the choices, in float32."""
    m, chosen, hidden = x.shape
    block = min(1024, triton.next_power_of_2(hidden))
    if m:
        _sum[(m, triton.cdiv(hidden, block))](x, out, H=hidden, CHOSEN=chosen, BLOCK=block)
