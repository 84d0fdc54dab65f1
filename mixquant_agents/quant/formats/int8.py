"""INT8: symmetric codes in −127 to 127 with one float32 scale per row."""

from __future__ import annotations

import torch

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.quant.formats.rowwise import RowwiseFormat

__all__ = ["FORMAT"]

FORMAT = RowwiseFormat(NumberFormat.INT8, torch.int8, "cutlass")
