"""The twin of a layer that vLLM made of several (q, k, v; gate, up) whose parts have different formats.

The weight is split along its outputs; each segment has a twin of its own and reads the same rows. Captured graphs hold
it as the one operation that the layer has anyway. Neighbouring parts of one format are one segment.
A norm or an activation before the layer is computed once, and each segment quantizes its result by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.resolve import LayerFormat, PartFormats
from mixquant_agents.quant.numerics.nvfp4 import Nvfp4Tensor
from mixquant_agents.quant.ops.sources import ExactRows, PlainRows, RowSource
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration

__all__ = ["ExactTwin", "PartsTwin", "Segment", "rows_of", "segments"]


class ExactTwin(Twin[torch.Tensor]):
    """A part whose rows all stay exact: the state is the weight's own memory."""

    captured = True
    name = "exact"

    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`: nothing of its own."""
        return 0

    def build(self, weight: torch.Tensor, calibration: LayerCalibration = UNCALIBRATED) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return weight

    def tensors(self, state: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`: none but the layer's weight, which is listed there."""
        return {}

    def product(
        self, source: RowSource, state: torch.Tensor, bias: torch.Tensor | None = None, exact: ExactRows | None = None
    ) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return linear(source.rows_with(exact), state, bias)


class Segment(NamedTuple):
    """Neighbouring parts of one format.

    Attributes:
        twin: of the segment.
        width: its outputs.
        parts: the numbers of its parts.
    """

    twin: Twin[Any]
    width: int
    parts: range


def segments(
    formats: PartFormats, widths: Sequence[int], twin_of: Callable[[LayerFormat], Twin[Any]]
) -> tuple[Segment, ...]:
    """The segments of a layer whose parts have these formats and outputs.

    Raises:
        FormatRefusedError: there are not as many parts as formats.
    """
    if len(widths) != len(formats.parts):
        raise FormatRefusedError(
            f"formats gives {len(formats.parts)} parts of one layer different formats ({formats.name}), but this "
            f"model's has {len(widths)} ({', '.join(map(str, widths))} outputs); name the whole layer instead"
        )
    segments = []
    for layer_format, group in groupby(enumerate(formats.parts), key=lambda part: part[1]):
        numbers = [number for number, _ in group]
        twin = ExactTwin() if layer_format is None else twin_of(layer_format)
        segments.append(Segment(twin, sum(widths[number] for number in numbers), range(numbers[0], numbers[-1] + 1)))
    return tuple(segments)


class PartsTwin(Twin[tuple[Any, ...]]):
    """One twin for each segment; the state holds theirs, in order."""

    def __init__(self, name: str, parts: Sequence[Segment]) -> None:
        """
        Args:
            name: see :class:`~mixquant_agents.quant.twins.base.Twin`.
            parts: all native, or all emulated (exact ones are either).
        """
        self.name = name
        self.segments = tuple(parts)
        self._widths = [segment.width for segment in self.segments]
        self.captured = all(segment.twin.captured for segment in self.segments)

    @property
    def build_key(self) -> Hashable:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return tuple((segment.twin.build_key, segment.width) for segment in self.segments)

    def prepare(self) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        for segment in self.segments:
            segment.twin.prepare()

    def check(self, n: int, k: int, prefix: str) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        for segment in self.segments:
            segment.twin.check(segment.width, k, prefix)

    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return sum(segment.twin.nbytes(segment.width, k, dtype) for segment in self.segments)

    def build(self, weight: torch.Tensor, calibration: LayerCalibration = UNCALIBRATED) -> tuple[Any, ...]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`. A calibration's rounded twin is split likewise."""
        rows, states = 0, []
        for segment in self.segments:
            part = weight[rows : rows + segment.width]
            own = calibration._replace(twin=rows_of(calibration.twin, torch.arange(rows, rows + segment.width)))
            states.append(segment.twin.build(part, own))
            rows += segment.width
        return tuple(states)

    def adopt(
        self, weight: Nvfp4Tensor, dtype: torch.dtype, calibration: LayerCalibration = UNCALIBRATED
    ) -> tuple[Any, ...]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`.

        Raises:
            FormatRefusedError: a checkpoint in one format cannot fill parts in several.
        """
        raise FormatRefusedError(
            f"prefill_checkpoint holds NVFP4 alone, and formats asks for {self.name}; leave the checkpoint or the "
            "formats out"
        )

    def tensors(self, state: tuple[Any, ...]) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`; names are numbered by segment."""
        return {
            f"{number}_{name}": tensor
            for number, (segment, own) in enumerate(zip(self.segments, state, strict=True))
            for name, tensor in segment.twin.tensors(own).items()
        }

    def renew(self, state: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        for segment, own, fresh in zip(self.segments, state, values, strict=True):
            segment.twin.renew(own, fresh)

    def product(
        self,
        source: RowSource,
        state: tuple[Any, ...],
        bias: torch.Tensor | None = None,
        exact: ExactRows | None = None,
    ) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        rows = PlainRows(source.rows_with(exact))
        biases = [None] * len(self._widths) if bias is None else bias.split(self._widths)
        products = [
            segment.twin.product(rows, own, part)
            for segment, own, part in zip(self.segments, state, biases, strict=True)
        ]
        return torch.cat(products, dim=-1)

    def tune(self, layers: Sequence[tuple[torch.Tensor, tuple[Any, ...]]], most_rows: int | None = None) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        rows = 0
        for number, segment in enumerate(self.segments):
            parts = [(weight[rows : rows + segment.width], state[number]) for weight, state in layers]
            segment.twin.tune(parts, most_rows)
            rows += segment.width

    def status(self) -> dict[str, Any]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`; of all segments."""
        return {name: value for segment in self.segments for name, value in segment.twin.status().items()}


def rows_of(weight: Nvfp4Tensor | None, index: torch.Tensor) -> Nvfp4Tensor | None:
    """The rows ``index`` (int64, on the CPU) of a quantized weight."""
    if weight is None:
        return None
    own = index.to(weight.packed.device)
    scale = weight.global_scale[own] if weight.global_scale.ndim else weight.global_scale
    scales = weight.scales.view(torch.uint8)[own].view(torch.float8_e4m3fn)
    return Nvfp4Tensor(weight.packed[own], scales, scale, weight.columns)
