"""The number formats by name, and what of each can be known without computing: one line of the table for each format.

The arithmetic of a format is in the module of its name below :mod:`mixquant_agents.quant.formats`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

__all__ = ["FORMATS", "FormatName", "FormatSpec", "NumberFormat"]

FormatName = Literal["auto", "exact", "nvfp4", "fp8", "int8", "mxfp4"]
"""The values of :class:`NumberFormat`, as one types them."""


class NumberFormat(enum.StrEnum):
    """Number format of the Linear layers inside the transformer blocks.

    ``EXACT`` is the engine's own dtype (BF16 on GPU, float32 on CPU). ``NVFP4`` is W4A4: E2M1 in blocks of 16 with
    FP8-E4M3 block scales. ``MXFP4`` likewise, in blocks of 32 with power-of-two scales (OCP MX); emulated everywhere.
    ``FP8`` is E4M3 with per-channel weight and per-token activation scales. ``INT8`` likewise.
    ``AUTO`` takes what the device runs natively: NVFP4 on Blackwell, FP8 on Hopper and Ada, EXACT elsewhere.
    """

    AUTO = "auto"
    EXACT = "exact"
    NVFP4 = "nvfp4"
    FP8 = "fp8"
    INT8 = "int8"
    MXFP4 = "mxfp4"


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """What policies and devices need to know of a format.

    Attributes:
        lacking: why a GPU outside the native range does not run it, after the GPU's name.
        native_from: CUDA compute capability from which GPUs run it natively; ``None``: there is no native form.
        native_below: capability from which they no longer do; ``None``: no such limit.
        keeps_last_token_exact: ``exact_last_token="auto"`` keeps the last prompt token exact where decode is exact.
        automatic: ``prefill_format="auto"`` takes it where it is native; earlier lines of the table go first.
        has_checkpoints: twins can come from a pre-quantized checkpoint.
    """

    lacking: str
    native_from: tuple[int, int] | None = None
    native_below: tuple[int, int] | None = None
    keeps_last_token_exact: bool = False
    automatic: bool = False
    has_checkpoints: bool = False

    def is_native(self, capability: tuple[int, int]) -> bool:
        """Whether GPUs of this compute capability multiply in the format."""
        if self.native_from is None or capability < self.native_from:
            return False
        return self.native_below is None or capability < self.native_below


FORMATS: dict[NumberFormat, FormatSpec] = {
    NumberFormat.NVFP4: FormatSpec(
        "has no FP4 tensor cores; Blackwell has",
        native_from=(10, 0),
        keeps_last_token_exact=True,
        automatic=True,
        has_checkpoints=True,
    ),
    NumberFormat.FP8: FormatSpec(
        "has no FP8 tensor cores; Ada and Hopper have",
        native_from=(8, 9),
        automatic=True,
    ),
    NumberFormat.INT8: FormatSpec(
        "has no fast INT8 path; Ampere to Hopper have",
        native_from=(8, 0),
        native_below=(10, 0),
    ),
    NumberFormat.MXFP4: FormatSpec(
        "is given no MXFP4 product by this package; on Blackwell it has one of NVFP4",
        keeps_last_token_exact=True,
    ),
}
"""The quantized formats. Presets, the support table, ``mixquant doctor`` and the columns of ``mixquant bench fidelity``
follow from this table."""
