"""The device's products held against our references, on the model's own layers, before the first request.

Kernels have been silently wrong: CUTLASS's NVFP4 on some SM120 cards, and kernels that read 4-bit weights but multiply
in 16 bits. A name says little, so the numbers decide. The reference is the emulation of the same format, on some
outputs of each shape of layer; the rows are ordinary, zero, large, tiny, with one large value, and fill no whole tile.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.resolve import LayerFormat, PartFormats
from mixquant_agents.quant.formats.registry import emulated_twin
from mixquant_agents.quant.layer import RoutedLayer
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration
from mixquant_agents.quant.twins.parts import PartsTwin, rows_of

__all__ = ["LIMIT", "KernelCheck", "Unit", "check", "first_of_each_shape", "sample_rows", "units_of"]

LIMIT = 0.05
"""Largest error of a row, of its length. Kernels that round alike differ by the order of sums, by the last digit of
BF16 (0.004) and by a tie now and then; one that leaves activations in 16 bits by 0.1."""

_ROWS = 37
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
    """

    name: str
    layer_format: LayerFormat
    twin: Twin[Any]
    weight: torch.Tensor
    state: Any
    calibration: LayerCalibration = UNCALIBRATED


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """What was found.

    Attributes:
        errors: largest error of a row, of its length, by format and shape.
        seconds: how long it took.
    """

    errors: dict[str, float]
    seconds: float

    def status(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"kernel_errors": {name: float(f"{error:.2g}") for name, error in self.errors.items()}}


def units_of(layer: RoutedLayer, calibration: LayerCalibration = UNCALIBRATED) -> Iterator[Unit]:
    """The products of a layer: one, or one for each of its segments; none where it stays exact."""
    layer_format = layer.layer_format
    if isinstance(layer_format, LayerFormat):
        yield Unit(layer.prefix, layer_format, layer.twin, layer.weight, layer.state, calibration)
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
    x = torch.randn(_ROWS, k, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    x[5] *= 300.0
    x[7] *= 0.02
    x[11] *= 1e-3
    x[13, k // 2] = 900.0
    x[17, 16:] = 0
    x[-1] *= 4.0  # the last row of a tile that is not full
    return x.to(device, dtype)


def check(units: Iterable[Unit]) -> KernelCheck:
    """Compare one product of each format and shape.

    Raises:
        FormatRefusedError: a product is wrong; names the kernel, the shape and by how much.
    """
    started = time.perf_counter()
    errors: dict[str, float] = {}
    with torch.inference_mode():
        for unit in units:
            n, k = unit.weight.shape
            key = f"{unit.layer_format.name} {n}x{k}"
            if key not in errors:
                errors[key] = error = _error(unit)
                if not error <= LIMIT:
                    raise _refused(unit, key, error)
    return KernelCheck(errors, time.perf_counter() - started)


def _error(unit: Unit) -> float:
    n, k = unit.weight.shape
    peak = unit.weight.abs().amax(dim=1).argmax().cpu()
    index = torch.cat([torch.arange(min(n, _OUTPUTS)), torch.arange(max(0, n - _OUTPUTS), n), peak.reshape(1)]).unique()
    x = sample_rows(k, unit.weight.device, unit.weight.dtype)
    product = unit.twin.product(PlainRows(x), unit.state)[:, index.to(x.device)].float()
    reference = emulated_twin(dataclasses.replace(unit.layer_format, emulated=True))
    known = unit.calibration._replace(twin=rows_of(unit.calibration.twin, index))
    state = reference.build(unit.weight[index.to(x.device)].float(), known)
    expected = reference.product(PlainRows(x.float()), state)
    length = expected.norm(dim=1)
    difference = (product - expected).norm(dim=1)
    # A row that the format rounds to zero altogether must be zero.
    error = torch.where(length > 0, difference / length.clamp_min(1e-30), torch.where(difference > 0, torch.inf, 0.0))
    return float("inf") if error.isnan().any() else float(error.max())


def _refused(unit: Unit, key: str, error: float) -> FormatRefusedError:
    kernel = unit.twin.status().get("kernel")
    named = f"{kernel} " if kernel else ""
    remedy = f"set VLLM_DISABLED_KERNELS={kernel} to try vLLM's next, or " if kernel else ""
    return FormatRefusedError(
        f"the {named}product of {unit.name!r} ({key}) is wrong on this device: its largest error is {error:.2g} of a "
        f"row's length, the limit {LIMIT}; {remedy}use policy 'exact', or another format"
    )


def first_of_each_shape(layers: Sequence[RoutedLayer]) -> list[RoutedLayer]:
    """One layer of each format and shape, in the model's order."""
    first: dict[tuple[str, torch.Size], RoutedLayer] = {}
    for layer in layers:
        if layer.layer_format is not None:
            first.setdefault((layer.layer_format.name, layer.weight.shape), layer)
    return list(first.values())
