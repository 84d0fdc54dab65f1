"""The device's products held against our references, on the model's own layers, before the first request.

Kernels have been silently wrong: CUTLASS's NVFP4 on some SM120 cards, and kernels that read 4-bit weights but multiply
in 16 bits. A name says little, so the numbers decide. The reference is the emulation of the same format, on some
outputs of each shape of layer; the rows are ordinary, zero, large, tiny, with one large value, and fill no whole tile.
They run once as a few rows and once as many, which kernels and our choice among products treat differently.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.resolve import LayerFormat, PartFormats
from mixquant_agents.quant.formats.registry import reference_twin
from mixquant_agents.quant.layer import KernelTrial, RoutedLayer
from mixquant_agents.quant.numerics.nvfp4 import Nvfp4Tensor
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.row_errors import largest_error
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration
from mixquant_agents.quant.twins.parts import PartsTwin, rows_of

__all__ = [
    "COPIES",
    "LIMIT",
    "ExactUnit",
    "KernelCheck",
    "Unit",
    "check",
    "first_of_each_shape",
    "sample_rows",
    "units_of",
]

LIMIT = 0.05
"""Largest error of a row, of its length. Kernels that round alike differ by the order of sums, by the last digit of
BF16 (0.004) and by a tie now and then; one that leaves activations in 16 bits by 0.1."""

_ROWS = 37
COPIES = (1, 14)
"""The rows are multiplied this often in one product: 37 rows, and 518, which end in a tile of 6."""

_OUTPUTS = 64
"""So many of the first and of the last outputs are compared, and the one with the largest weight: with it, a weight's
global scale is that of the whole."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One product to check.

    Attributes:
        name: of the layer.
        layer_format: native.
        twin: that runs it.
        weight: exact, ``[N, K]``.
        state: the twin's.
        calibration: that the state was built with.
        adopted: the quantized weight that the state holds, where it was not made of ``weight`` but read from a
            checkpoint.
    """

    name: str
    layer_format: LayerFormat
    twin: Twin[Any]
    weight: torch.Tensor
    state: Any
    calibration: LayerCalibration = UNCALIBRATED
    adopted: Nvfp4Tensor | None = None

    @property
    def key(self) -> str:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`."""
        return f"{self.layer_format.name} {self.weight.shape[0]}x{self.weight.shape[1]}"

    @property
    def kernel(self) -> str | None:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`."""
        return self.twin.status().get("kernel")

    @property
    def limit(self) -> float:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`."""
        return LIMIT

    def error(self) -> float:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`."""
        return _error(self)


@dataclass(frozen=True, slots=True)
class ExactUnit:
    """A product of exact rows, where the twin holds the exact weight too.

    Attributes:
        unit: the quantized product of the same layer.
        limit: see :class:`~mixquant_agents.quant.layer.KernelTrial`; sums in float32, rounded once.
    """

    unit: Unit
    limit: float = 0.01
    kernel: None = None

    @property
    def name(self) -> str:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`."""
        return self.unit.name

    @property
    def key(self) -> str:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`."""
        return f"{self.unit.key}, exact rows"

    def error(self) -> float:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`; of one row, some and many."""
        unit = self.unit
        index = _outputs_of(unit.weight)
        x = sample_rows(unit.weight.shape[1], unit.weight.device, unit.weight.dtype)
        expected = (x.double() @ unit.weight[index].double().T).float()
        operand = unit.twin.operand(unit.weight, unit.state)
        single_row = unit.twin.exact(x[:1], operand, unit.state)[:, index]
        copied_rows = (unit.twin.exact(x.repeat(copies, 1), operand, unit.state)[:, index] for copies in COPIES)
        return max(
            largest_error(single_row, expected[:1]), *(largest_error(product, expected) for product in copied_rows)
        )


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """The errors of products.

    Attributes:
        errors: largest error of a row, of its length, by format and shape.
        seconds: how long it took.
    """

    errors: dict[str, float]
    seconds: float

    def status(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"kernel_errors": {name: float(f"{error:.2g}") for name, error in self.errors.items()}}


def units_of(
    layer: Any, calibration: LayerCalibration = UNCALIBRATED, adopted: Nvfp4Tensor | None = None
) -> Iterator[Unit | ExactUnit]:
    """The products of a routed Linear: one, or one for each of its segments, and that of exact rows where a
    twin holds their weight; none where it stays exact.

    Args:
        layer: with its twin.
        calibration: that the twin was built with.
        adopted: what it was read from a checkpoint as, if it was.
    """
    layer_format = layer.layer_format
    if isinstance(layer_format, LayerFormat):
        unit = Unit(layer.prefix, layer_format, layer.twin, layer.weight, layer.state, calibration, adopted)
        yield unit
        if layer.twin.holds_exact:
            yield ExactUnit(unit)
    elif isinstance(layer_format, PartFormats) and isinstance(layer.twin, PartsTwin):
        first = 0
        for segment, state in zip(layer.twin.segments, layer.state, strict=True):
            own = layer_format.parts[segment.parts.start]
            index = torch.arange(first, first + segment.width)
            if own is not None:
                part = calibration._replace(twin=rows_of(calibration.twin, index))
                yield Unit(layer.prefix, own, segment.twin, layer.weight[first : first + segment.width], state, part)
            first += segment.width


def sample_rows(k: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """``[37, k]``: what kernels get wrong is at the edges, so they are among the rows."""
    # Named: vLLM changes the default device and dtype while it builds a model.
    x = torch.randn(_ROWS, k, generator=torch.Generator("cpu").manual_seed(0), device="cpu", dtype=torch.float32)
    x[3] = 0
    x[5] *= 300.0
    x[7] *= 0.02
    x[11] *= 1e-3
    x[13, k // 2] = 900.0
    x[17, 16:] = 0
    x[-1] *= 4.0  # the last row of a tile that is not full
    return x.to(device, dtype)


def check(trials: Iterable[KernelTrial]) -> KernelCheck:
    """Compare one product of each format and shape.

    Raises:
        FormatRefusedError: a product is wrong, or does not run; names the kernel, the shape and by how much.
    """
    started = time.perf_counter()
    errors: dict[str, float] = {}
    with torch.inference_mode():
        for trial in trials:
            if trial.key not in errors:
                try:
                    errors[trial.key] = error = trial.error()
                except RuntimeError as problem:
                    reason = str(problem).strip().partition("\n")[0]
                    raise _refused(trial, f"does not run on this device: {reason}") from problem
                if not error <= trial.limit:
                    wrong = f"is wrong on this device: its largest error is {error:.2g} of a row's length, the limit"
                    raise _refused(trial, f"{wrong} {trial.limit}")
    return KernelCheck(errors, time.perf_counter() - started)


def _error(unit: Unit) -> float:
    index = _outputs_of(unit.weight)
    x = sample_rows(unit.weight.shape[1], unit.weight.device, unit.weight.dtype)
    expected = _expected(unit, x, index)
    products = (unit.twin.product(PlainRows(x.repeat(copies, 1)), unit.state)[:, index] for copies in COPIES)
    return max(largest_error(product, expected) for product in products)


def _outputs_of(weight: torch.Tensor) -> torch.Tensor:
    """Which outputs are compared: int64, on the weight's device."""
    n = weight.shape[0]
    count = min(n, _OUTPUTS)
    peak = torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)).argmax().reshape(1)
    first, last = (torch.arange(*ends, device=weight.device) for ends in ((0, count), (n - count, n)))
    return torch.cat([first, last, peak]).unique()


def _expected(unit: Unit, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The reference: float32 ``[rows, outputs]``."""
    own = index.cpu()
    reference = reference_twin(unit.layer_format)
    calibration = unit.calibration._replace(twin=rows_of(unit.calibration.twin, own))
    adopted = rows_of(unit.adopted, own)
    if adopted is not None:
        state = reference.adopt(adopted.to(x.device), torch.float32, calibration)
    else:
        state = reference.build(unit.weight[index].float(), calibration)
    return reference.product(PlainRows(x.float()), state)


def _refused(trial: KernelTrial, why: str) -> FormatRefusedError:
    named = f"{trial.kernel} " if trial.kernel else ""
    remedy = f"set VLLM_DISABLED_KERNELS={trial.kernel} to try vLLM's next, or " if trial.kernel else ""
    return FormatRefusedError(
        f"the {named}product of {trial.name!r} ({trial.key}) {why}; {remedy}use policy 'exact', or another format"
    )


def first_of_each_shape(layers: Sequence[RoutedLayer]) -> list[RoutedLayer]:
    """One layer of each format and shape, in the model's order."""
    first: dict[tuple[str, tuple[int, ...]], RoutedLayer] = {}
    for layer in layers:
        if layer.layer_format is not None:
            first.setdefault((layer.layer_format.name, layer.shape), layer)
    return list(first.values())
