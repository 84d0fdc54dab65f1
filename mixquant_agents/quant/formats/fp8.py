"""FP8: E4M3 codes with one float32 scale per row (OCP 8-bit FP v1.0)."""

from __future__ import annotations

import torch

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.quant.formats.rowwise import RowwiseFormat

__all__ = ["FORMAT"]

FORMAT = RowwiseFormat(NumberFormat.FP8, torch.float8_e4m3fn, "torch", "cutlass")
"""``torch`` runs shapes that were not measured: it was ahead on every one of an 8B model."""
