"""Twins that lie within the exact weight: FP8 codes and what BF16 has more, one storage of twelve bits a weight.

See :mod:`mixquant_agents.quant.nested`. The native twin replaces the layer's weight; the emulated one goes through the
same storage and back, so that an engine on a CPU computes with what came out of the twelve bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear

from mixquant_agents.errors import ConfigError, EngineStartError, FormatRefusedError
from mixquant_agents.quant.nested.layout import TILE_K, TILE_N, NestedWeight, natural, nest, rebuild
from mixquant_agents.quant.nested.product import (
    NestedProduct,
    ProductPlan,
    Scratch,
    TwinProduct,
    exact_weight,
    first_plan,
    measure,
    measure_twin,
)
from mixquant_agents.quant.nested.tiling import AnyTiling
from mixquant_agents.quant.ops.sources import ExactRows, RowSource
from mixquant_agents.quant.timing import unwatched_objects
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration
from mixquant_agents.quant.twins.emulated import EmulatedTwin, Grid
from mixquant_agents.quant.twins.few_rows import check_few_rows
from mixquant_agents.quant.twins.rowwise import Codes, RowwiseTwin

__all__ = ["EmulatedNestedTwin", "NestedGrid", "NestedState", "NestedTwin", "nested"]

_SPARE = 256
"""Places of the table of escapes beyond those in use, and a quarter more: weights loaded anew have others."""


def nested(weight: torch.Tensor, name: str) -> NestedWeight:
    """``weight`` ``[N, K]`` in twelve bits.

    Raises:
        FormatRefusedError: its values are no BF16 numbers, for the twin ``name``.
    """
    narrow = weight.to(torch.bfloat16)
    if weight.dtype != torch.bfloat16 and not torch.equal(narrow.to(weight.dtype), weight):
        raise FormatRefusedError(
            f"{name!r} holds bfloat16 weights, and these have values in {weight.dtype} that bfloat16 has not; "
            "set dtype 'bfloat16', or storage 'separate'"
        )
    return nest(narrow)


def _check(n: int, k: int, prefix: str) -> None:
    if n % TILE_N or k % TILE_K:
        raise FormatRefusedError(
            f"layer {prefix!r} has {n} outputs and {k} inputs on this rank; nested storage needs multiples of {TILE_N} "
            f"and {TILE_K}: add {prefix.rpartition('.')[2]!r} to ignored_layers, or use storage 'separate'"
        )


class NestedState:
    """One weight.

    Attributes:
        weight: all its bits.
        scales: float32 ``[N, 1]``, powers of two, by which the codes are the twin.
        product: of exact rows, on a GPU; ``None`` until it is first needed.
        draft: of a draft's few unquantized rows with the twin; ``None`` until it was tuned.
    """

    def __init__(self, weight: NestedWeight, scales: torch.Tensor) -> None:
        self.weight = weight
        self.scales = scales
        self.product: NestedProduct | None = None
        self.draft: TwinProduct | None = None


class NestedTwin(Twin[NestedState]):
    """Native: FP8 products read the codes, exact rows are multiplied by kernels that read both parts."""

    captured = True
    holds_exact = True

    def __init__(self, name: str, *products: str) -> None:
        """
        Args:
            name: see :class:`~mixquant_agents.quant.twins.base.Twin`.
            products: see :class:`~mixquant_agents.quant.twins.rowwise.RowwiseTwin`.
        """
        self.name = name
        self._codes = RowwiseTwin(name, torch.float8_e4m3fn, *products, ordered=True)
        self._plans: dict[tuple[int, int], ProductPlan] = {}
        self._draft_tilings: dict[tuple[int, int], Mapping[int, AnyTiling]] = {}
        self._scratch = Scratch()
        self._verified = 0

    def check(self, n: int, k: int, prefix: str) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        _check(n, k, prefix)

    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`; with as many escapes as Gaussian weights have."""
        escapes = n * k // 3000 * 5 // 4 + _SPARE
        return n * k * 3 // 2 + 6 * n + 4 * (n // TILE_N * (k // TILE_K) + 1) + 8 * escapes

    def build(self, weight: torch.Tensor, calibration: LayerCalibration = UNCALIBRATED) -> NestedState:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`; every bit is compared with what comes back.

        Raises:
            FormatRefusedError: ``weight`` is not in BF16.
            EngineStartError: a weight did not come back.
        """
        if weight.is_cuda and weight.dtype != torch.bfloat16:
            raise FormatRefusedError(
                f"{self.name!r} multiplies in bfloat16, not {weight.dtype}; set dtype 'bfloat16', or storage 'separate'"
            )
        if weight.is_cuda:
            # What stays is allocated in memory of its own, not in pieces of what temporaries and other layers' weights
            # left behind: those would then never be given back.
            torch.cuda.empty_cache()
        held = nested(weight, self.name)
        count = held.escapes.shape[0]
        escapes = held.escapes.new_zeros(count + count // 4 + _SPARE, 2)
        escapes[:count] = held.escapes
        held = NestedWeight(held.codes, held.low, held.offsets, held.first, escapes)
        state = NestedState(held, held.twin_scales())
        if not _same_bits(self.exact_weight(weight, state), weight.to(torch.bfloat16)):
            raise EngineStartError(f"a weight of shape {tuple(weight.shape)} did not come back from twelve bits")
        self._verified += 1
        return state

    def tensors(self, state: NestedState) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        held = state.weight
        return {
            "codes": held.codes,
            "low": held.low,
            "offsets": held.offsets,
            "first": held.first,
            "escapes": held.escapes,
            "scales": state.scales,
        }

    def renew(self, state: NestedState, values: NestedState) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`.

        Raises:
            ConfigError: the new weights have more escapes than the table holds.
        """
        room, count = state.weight.escapes.shape[0], int(values.weight.first[-1])
        if count > room:
            raise ConfigError(
                f"the weights loaded anew have {count} values far below their channel's largest, and the table made at "
                f"start holds {room}; start another engine, or use storage 'separate'"
            )
        fresh = self.tensors(values)
        for name, tensor in self.tensors(state).items():
            if name == "escapes":
                tensor[:count] = fresh[name][:count]
            else:
                tensor.copy_(fresh[name])
        if state.scales.is_cuda:
            torch.cuda.synchronize()  # kernels fetch weights before the kernel ahead of them has ended

    def operand(self, weight: torch.Tensor, state: NestedState) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`: the codes."""
        return state.weight.codes

    def exact_weight(self, weight: torch.Tensor, state: NestedState) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return exact_weight(state.weight)

    def exact(
        self, rows: torch.Tensor, weight: torch.Tensor, state: NestedState, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`. Without a GPU the weight is rebuilt: slow, and plain."""
        if not rows.is_cuda:
            return linear(rows, rebuild(state.weight).to(rows.dtype), bias)
        if state.product is None:
            state.product = self._product_of(state)
        return state.product(rows, bias)

    def _product_of(self, state: NestedState) -> NestedProduct:
        """The product of this weight; its shape is measured now where :meth:`tune` has not seen it."""
        n, k = state.weight.codes.shape
        if (n, k) not in self._plans:
            if torch.cuda.is_current_stream_capturing():
                plan = first_plan(n, k, torch.cuda.get_device_capability(state.scales.device))
                return NestedProduct(state.weight, plan, self._scratch)
            self._measure([state])
        return NestedProduct(state.weight, self._plans[n, k], self._scratch)

    def _measure(self, states: Sequence[NestedState]) -> None:
        by_shape = _by_shape(states)
        with unwatched_objects():
            for shape in sorted(by_shape, key=math.prod, reverse=True):  # the largest first: the scratch grows once
                self._plans[shape] = measure(by_shape[shape], self._scratch)

    def product(
        self, source: RowSource, state: NestedState, bias: torch.Tensor | None = None, exact: ExactRows | None = None
    ) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return self._codes.product(source, Codes(state.weight.codes, state.scales), bias, exact)

    def few_rows(self, source: RowSource, state: NestedState, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`: unquantized rows times the codes, 8 bits a weight."""
        if state.draft is None and (tilings := self._draft_tilings.get(_shape(state))):
            state.draft = TwinProduct(state.weight, tilings)
        if state.draft is None or not 0 < source.x.shape[0] <= state.draft.most_rows:
            return self.product(source, state, bias)
        return state.draft(source.rows(), bias)

    def tune_few_rows(self, layers: Sequence[tuple[torch.Tensor, NestedState]]) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        by_shape = _by_shape(state for _, state in layers if state.scales.is_cuda)
        with unwatched_objects():
            tilings = {shape: measure_twin(same) for shape, same in by_shape.items()}
        for shape, (weight, *_) in by_shape.items():
            product = TwinProduct(weight, tilings[shape])
            if product.most_rows:
                codes = natural(weight.codes.view(torch.uint8)).view(weight.codes.dtype)
                check_few_rows(product, codes, weight.twin_scales(), (1, product.most_rows), torch.bfloat16)
        self._draft_tilings |= tilings

    def tune(self, layers: Sequence[tuple[torch.Tensor, NestedState]], most_rows: int | None = None) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`: of both products."""
        codes = [(weight, Codes(state.weight.codes, state.scales)) for weight, state in layers]
        self._codes.tune(codes, most_rows)
        self._measure([state for _, state in layers])

    def status(self) -> dict[str, Any]:
        """The products that were chosen, and how many weights came back bit for bit when they were nested."""
        plans = {
            f"{n}x{k}": {"unpack_from": plan.unpack_from, "microseconds": dict(plan.microseconds)}
            for (n, k), plan in self._plans.items()
        }
        return {**self._codes.status(), "nested_products": plans, "rebuilt_weights": self._verified}


class NestedGrid(NamedTuple):
    """An emulated twin of one weight, and the exact weight as it came back from twelve bits, in the layer's dtype."""

    grid: Grid
    exact: torch.Tensor


class EmulatedNestedTwin(Twin[NestedGrid]):
    """The codes in wide arithmetic, and exact rows by the rebuilt weight. Saves no memory."""

    def __init__(self, name: str, emulation: EmulatedTwin) -> None:
        """``emulation`` rounds activations, and multiplies."""
        self.name = name
        self._emulation = emulation

    def check(self, n: int, k: int, prefix: str) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        _check(n, k, prefix)

    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return self._emulation.nbytes(n, k, dtype) + n * k * int(dtype.itemsize)

    def build(self, weight: torch.Tensor, calibration: LayerCalibration = UNCALIBRATED) -> NestedGrid:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`. Rows beyond the last whole tile are filled up.

        Raises:
            FormatRefusedError: a value is no BF16 number.
        """
        rows = weight.shape[0]
        whole = torch.nn.functional.pad(weight, (0, 0, 0, -rows % TILE_N))
        held = nested(whole, self.name)
        codes = natural(held.codes.view(torch.uint8)).view(torch.float8_e4m3fn)[:rows]
        grid = self._emulation.grid((codes.float(), held.twin_scales()[:rows]), weight.dtype, calibration)
        return NestedGrid(grid, rebuild(held)[:rows].to(weight.dtype))

    def tensors(self, state: NestedGrid) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return {**self._emulation.tensors(state.grid), "exact": state.exact}

    def exact(
        self, rows: torch.Tensor, weight: torch.Tensor, state: NestedGrid, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return linear(rows, state.exact, bias)

    def product(
        self, source: RowSource, state: NestedGrid, bias: torch.Tensor | None = None, exact: ExactRows | None = None
    ) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return self._emulation.product(source, state.grid, bias, exact)


def _shape(state: NestedState) -> tuple[int, int]:
    n, k = state.weight.codes.shape
    return n, k


def _by_shape(states: Iterable[NestedState]) -> dict[tuple[int, int], list[NestedWeight]]:
    shapes: dict[tuple[int, int], list[NestedWeight]] = {}
    for state in states:
        shapes.setdefault(_shape(state), []).append(state.weight)
    return shapes


def _same_bits(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    same: bool = torch.equal(tensor.view(torch.int16), other.view(torch.int16))
    return same
