"""What the start-up measurement takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["Layer", "Thresholds"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One Linear: exact weight ``[N, K]``, twin codes ``[N, K]`` and scales ``[N, 1]``."""

    weight: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A step with at most so many rows runs exact.

    Attributes:
        pure: steps whose rows are all to be quantized.
        mixed: steps that hold exact rows too.
        microseconds: what was measured, per chain and number of rows.
        seconds: how long measuring took.
    """

    pure: int
    mixed: int
    microseconds: dict[str, dict[int, float]] = field(default_factory=dict)
    seconds: float = 0.0
