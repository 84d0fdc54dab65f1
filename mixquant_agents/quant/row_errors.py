"""How far a product is from what it should be: what every check at start and at tuning goes by."""

from __future__ import annotations

import torch

__all__ = ["largest_error"]


def largest_error(product: torch.Tensor, expected: torch.Tensor) -> float:
    """Of some copies of rows, ``[copies * R, N]``, the largest distance from ``expected`` (``[R, N]``, float32 or
    float64), of a row's length; infinite where there is no number."""
    length = expected.norm(dim=1)
    difference = (product.float().unflatten(0, (-1, expected.shape[0])) - expected).norm(dim=2)
    # A row that the format rounds to zero altogether must be zero.
    of_zero = torch.where(difference > 0, torch.inf, 0.0)
    error = torch.where(length > 0, difference / length.clamp_min(1e-30), of_zero)
    return float("inf") if error.isnan().any() else float(error.max())
