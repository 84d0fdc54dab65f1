"""Emulated twins run anywhere: the weight on its grid in a dtype that holds the grid exactly, multiplied in wide
arithmetic, scales put on afterwards, as tensor cores do. They cost more than the exact product and exist to show what a
format does to answers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import linear

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.quant.numerics.nvfp4 import Nvfp4Tensor
from mixquant_agents.quant.ops.sources import ExactRows, RowSource
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration

__all__ = ["EmulatedTwin", "Grid", "Rounding", "Split"]

_RESIDUAL_SCALE = 4.0
"""Of a residual's global scale over its row's: E2M1 leaves at most a sixth of a block's largest magnitude."""

Split = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""``[R, K]`` to values on the format's grid (float32 ``[R, K]``) and what each row is to be multiplied by
(float32 ``[R, 1]`` or ``[]``)."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How an emulated twin rounds.

    Attributes:
        weight: splits weights.
        rows: splits activations; ``None`` leaves them as they are (weight-only).
        adopt: splits a weight that was quantized before, or refuses it.
        scaled: splits activations given a layer's global scale (float32 ``[]``), for formats that have one; instead of
            ``rows``.
        residual_channels: of so many input channels, what rounding left is rounded and multiplied too.
    """

    weight: Split
    rows: Split | None
    adopt: Callable[[Nvfp4Tensor], tuple[torch.Tensor, torch.Tensor]]
    scaled: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    residual_channels: int = 0


class Grid(NamedTuple):
    """A weight on its grid, and what its layer's activations are rounded by.

    Attributes:
        grid: ``[N, K]`` in float32, or bfloat16 for bfloat16 layers, which holds every grid here exactly.
        scale: float32 ``[N]`` or ``[]``; multiplies the product.
        activation_scale: float32 ``[]``; encodes. For formats without one it is 1.
        channels: int64 ``[C]``, the channels whose residual is multiplied too; empty for none.
        channel_scale: ``[K]``, powers of two that input channels are multiplied by first; empty for none.
    """

    grid: torch.Tensor
    scale: torch.Tensor
    activation_scale: torch.Tensor
    channels: torch.Tensor
    channel_scale: torch.Tensor

    def split(self, rows: Sequence[int]) -> list[Grid]:
        """Of a weight made of several, one below the other, the grids of each; ``rows`` says how many each has."""
        scales = self.scale.split(list(rows)) if self.scale.ndim else [self.scale] * len(rows)
        parts = zip(self.grid.split(list(rows)), scales, strict=True)
        return [self._replace(grid=grid, scale=scale) for grid, scale in parts]


class EmulatedTwin(Twin[Grid]):
    """Grid values multiplied in a wide dtype; scales applied to the product."""

    def __init__(self, name: str, rounding: Rounding, variant: str = "nearest") -> None:
        """
        Args:
            name: see :class:`~mixquant_agents.quant.twins.base.Twin`.
            rounding: of weights and activations.
            variant: which of a calibration's twins are taken; ``"nearest"``: none, the weight itself is rounded.
        """
        self.name = name
        self._rounding = rounding
        self._variant = variant

    @property
    def build_key(self) -> Hashable:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return self._rounding.weight, self._variant, self._rounding.residual_channels

    @staticmethod
    def _wide(dtype: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if dtype is torch.bfloat16 else torch.float32

    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`; one scale for each row and channel at most."""
        return n * k * int(self._wide(dtype).itemsize) + 4 * n + 4 * k + 4 + 8 * self._rounding.residual_channels

    def build(self, weight: torch.Tensor, calibration: LayerCalibration = UNCALIBRATED) -> Grid:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        if self._variant != "nearest" and not (calibration.twin is None and calibration.nearest):
            if calibration.twin is None:
                raise FormatRefusedError(
                    f"{self.name!r} needs a calibration with rounded twins: run mixquant calibrate"
                )
            return self.grid(self._rounding.adopt(calibration.twin.to(weight.device)), weight.dtype, calibration)
        return self.grid(self._rounding.weight(calibration.divided(weight)), weight.dtype, calibration)

    def adopt(self, weight: Nvfp4Tensor, dtype: torch.dtype, calibration: LayerCalibration = UNCALIBRATED) -> Grid:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return self.grid(self._rounding.adopt(weight), dtype, calibration)

    def grid(self, split: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype, calibration: LayerCalibration) -> Grid:
        """The state of a weight that was split before, as :data:`Split` gives it, in a layer of ``dtype``."""
        grid, scale = split
        wide = grid.to(self._wide(dtype)).contiguous()
        activation_scale = torch.tensor(calibration.activation_scale, dtype=torch.float32, device=grid.device)
        scaled = calibration.channel_scale
        channel_scale = torch.empty(0, device=grid.device) if scaled is None else scaled.to(grid.device)
        flat = scale.flatten() if scale.ndim else scale
        return Grid(wide, flat, activation_scale, self._channels(calibration, wide), channel_scale)

    def _channels(self, calibration: LayerCalibration, grid: torch.Tensor) -> torch.Tensor:
        count = self._rounding.residual_channels
        if not count:
            return torch.empty(0, dtype=torch.int64, device=grid.device)
        if calibration.channels is None:
            raise FormatRefusedError(f"{self.name!r} needs a calibration that ranks channels: run mixquant calibrate")
        return calibration.channels[:count].to(grid.device)

    def tensors(self, state: Grid) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return state._asdict()

    def product(
        self, source: RowSource, state: Grid, bias: torch.Tensor | None = None, exact: ExactRows | None = None
    ) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        grid, scale, activation_scale, channels, channel_scale = state
        x = source.rows_with(exact, channel_scale if channel_scale.numel() else None)
        if self._rounding.rows is None:
            product = linear(x.to(grid.dtype), grid).float().mul_(scale)
        else:
            rows, row_scale = self._split(x, activation_scale)
            product = linear(rows.to(grid.dtype), grid).float()
            if channels.numel():
                rest = x[:, channels].float() - rows[:, channels] * row_scale
                rest_rows, rest_scale = self._split(rest, activation_scale * _RESIDUAL_SCALE)
                more = linear(rest_rows.to(grid.dtype), grid[:, channels]).float()
                product.add_(more.mul_(rest_scale / row_scale))
            product = product.mul_(row_scale).mul_(scale) if scale.ndim else product.mul_(row_scale * scale)
        out = product.to(x.dtype)
        return out if bias is None else out + bias

    def _split(self, x: torch.Tensor, activation_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rounding = self._rounding
        if rounding.scaled is not None:
            return rounding.scaled(x, activation_scale)
        if rounding.rows is None:
            raise RuntimeError("a weight-only twin splits no activations")
        return rounding.rows(x)
