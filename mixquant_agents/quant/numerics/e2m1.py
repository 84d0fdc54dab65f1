"""E2M1, the 4-bit float of NVFP4 and MXFP4: ±{0, 0.5, 1, 1.5, 2, 3, 4, 6} (OCP MX v1.0 §5.3.3)."""

from __future__ import annotations

import torch

__all__ = ["E2M1_MAX", "blocks", "pack", "round_e2m1", "round_e2m1_", "unpack"]

E2M1_MAX = 6.0
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_ONE_BITS = 0x3F800000
_EXPONENT_BITS = 0x7F800000
_MAGIC = 1.5 * 2.0**22
"""Adding ``p · _MAGIC`` leaves a float32 no digits below ``p / 2``, so the sum rounds, half to even, to multiples."""


def round_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Nearest E2M1 value (float32), ties to the even code, saturating at ±6. Keeps the sign of zero and NaN."""
    x = x.clamp(-E2M1_MAX, E2M1_MAX)
    size = x.abs()
    coarse = torch.where(size < 4.0, x.round(), (x * 0.5).round() * 2.0)
    return torch.where(size < 2.0, (x * 2.0).round() * 0.5, coarse)


def round_e2m1_(x: torch.Tensor) -> torch.Tensor:
    """:func:`round_e2m1` of a float32 in place, with few passes over memory. The sign of zero is free."""
    x.clamp_(-E2M1_MAX, E2M1_MAX)
    # The power of two at or below |x|, at least 1: E2M1 steps by half of it (its subnormals step by 0.5 too).
    power = (x.view(torch.int32) & _EXPONENT_BITS).clamp_(min=_ONE_BITS).view(torch.float32)
    magic = power.mul_(_MAGIC)
    return x.add_(magic).sub_(magic)


def blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """``[R, K]`` as ``[R, ceil(K/size), size]``, padded with zeros."""
    missing = -x.shape[-1] % size
    if missing:
        x = torch.nn.functional.pad(x, (0, missing))
    return x.reshape(x.shape[0], x.shape[1] // size, size)


def pack(values: torch.Tensor) -> torch.Tensor:
    """E2M1 values ``[R, K]`` (K even) to uint8 ``[R, K/2]``, the lower column in the low nibble, bit 3 the sign."""
    size = values.abs()
    codes = torch.where(size < 2.0, size * 2.0, torch.where(size < 4.0, size + 2.0, size * 0.5 + 4.0)).to(torch.uint8)
    codes = codes | (torch.signbit(values).to(torch.uint8) << 3)
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """uint8 ``[R, K/2]`` to E2M1 values, float32 ``[R, K]``."""
    codes = torch.stack((packed & 0x0F, packed >> 4), dim=-1).flatten(-2)
    table = torch.tensor(_VALUES + tuple(-v for v in _VALUES), device=packed.device)
    return table[codes.long()]
