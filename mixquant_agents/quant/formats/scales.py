"""What formats with one float32 scale per row have in common."""

from __future__ import annotations

import torch

__all__ = ["row_scales"]


def row_scales(peaks: torch.Tensor, most: float) -> torch.Tensor:
    """Scales that bring rows whose largest magnitudes are ``peaks`` (float32) to ``most``, the format's own largest;
    1 for a row of zeros, or of what is so small that its scale would be 0."""
    scales = peaks / most
    return torch.where(scales == 0, torch.ones_like(scales), scales)
