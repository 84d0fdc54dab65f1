"""BF16 weights in twelve bits: an E4M3 code, which is the FP8 twin itself, and the four mantissa bits that it lacks.

BF16 has 7 mantissa bits, E4M3 has 3. Each output channel (row) gets an exponent offset, a power of two, so that its
largest exponent falls on E4M3's exponent field 14 (15 would let rounding reach the NaN code). Then, for a weight whose
exponent lies within 14 binades of its row's largest::

    magnitude = bits of |w| without the row's offset          11 bits: 4 exponent, 7 mantissa
    code      = round-half-up(magnitude / 16), and the sign   8 bits: E4M3, the FP8 twin
    low       = magnitude - 16 · code                          -8 … 7, stored with 8 added: 4 bits

    magnitude = 16 · code + low                               all bits, always

Weights outside (0.03 % of a Gaussian's), subnormal, infinite and NaN ones are *escapes*: code 0, and a table that holds
them by row. Zeros are no escapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["ORDER", "TILE_K", "TILE_N", "NestedWeight", "natural", "nest", "ordered", "rebuild"]

TILE_N, TILE_K = 16, 64
"""Rows and inputs of the tile in which nibbles are laid out; ``N`` and ``K`` are multiples of them."""

ORDER = tuple(16 * s + 2 * t + i for t in range(4) for s in range(4) for i in (0, 8, 1, 9))
"""Inputs of each group of 64 in the order in which codes are stored: what thread ``t`` of a quad multiplies lies
together, four codes for each of its steps ``s``."""

SLICE = 2**24
"""Weights that are split at a time: temporaries take some 40 bytes each."""

_TOP_FIELD = 14
_TWIN_BIAS = 120
"""BF16's exponent bias less E4M3's: a code of a row with offset ``o`` stands for ``E4M3(code) · 2**(o - 120)``."""


@dataclass(frozen=True, slots=True)
class NestedWeight:
    """A BF16 weight ``[N, K]``, all its bits.

    Attributes:
        codes: float8_e4m3fn ``[N, K]``, row-major: the FP8 twin. Inputs lie in the order of :data:`ORDER`, to which
            quantized activations are put as well (:func:`ordered`); a product does not change by that.
        low: uint8 ``[N/16, K/64, 32, 16]``: nibbles in the order in which the kernel's threads read them.
        offsets: int16 ``[N]``: exponent offset of each row, 0 … 241.
        first: int32 ``[N/16 · K/64 + 1]``: where each tile's escapes begin in the table.
        escapes: int32 ``[E, 2]``, sorted by tile row and column: the column, and ``row % 16 << 16 | BF16 bits``. What
            lies beyond the last that ``first`` knows is unused.
    """

    codes: torch.Tensor
    low: torch.Tensor
    offsets: torch.Tensor
    first: torch.Tensor
    escapes: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        parts = (self.codes, self.low, self.offsets, self.first, self.escapes)
        return sum(part.numel() * part.element_size() for part in parts)

    def twin_scales(self) -> torch.Tensor:
        """Scales of the FP8 twin, float32 ``[N, 1]``, powers of two: ``w ≈ codes · scales``."""
        return torch.ldexp(torch.ones_like(self.offsets, dtype=torch.float32), self.offsets.int() - _TWIN_BIAS)[:, None]


def nest(weight: torch.Tensor) -> NestedWeight:
    """``weight`` bfloat16 ``[N, K]`` in twelve bits; works in slices of rows, so that little memory is needed.

    Raises:
        ValueError: the dtype is another, or ``N`` or ``K`` is no multiple of 16 or 64.
    """
    if weight.dtype != torch.bfloat16 or weight.ndim != 2:
        raise ValueError(f"nested storage takes a bfloat16 matrix, not {weight.dtype} of shape {tuple(weight.shape)}")
    n, k = weight.shape
    if n % TILE_N or k % TILE_K:
        raise ValueError(f"nested storage takes N in multiples of {TILE_N} and K of {TILE_K}, not {n} x {k}")
    codes = torch.empty(n, k, dtype=torch.uint8, device=weight.device)
    low = torch.empty(n // TILE_N, k // TILE_K, 32, 16, dtype=torch.uint8, device=weight.device)
    offsets = torch.empty(n, dtype=torch.int16, device=weight.device)
    keys, values = [], []
    step = max(TILE_N, SLICE // k // TILE_N * TILE_N)
    for begin in range(0, n, step):
        part = weight[begin : begin + step]
        code, nibbles, offsets[begin : begin + step], escaped = _split(part)
        codes[begin : begin + step] = ordered(code)
        low[begin // TILE_N : (begin + step) // TILE_N] = _pack(ordered(nibbles))
        row, column = escaped.nonzero(as_tuple=True)
        bits = part[escaped].view(torch.int16).int() & 0xFFFF
        keys.append((begin + row) // TILE_N * k + column)
        values.append(row % TILE_N << 16 | bits)
    key, order = torch.cat(keys).sort()
    escapes = torch.stack((key % k, torch.cat(values)[order]), dim=1).int()
    tiles = torch.arange(n // TILE_N * (k // TILE_K) + 1, device=weight.device)
    first = torch.searchsorted(key, tiles * TILE_K).int()
    return NestedWeight(codes.view(torch.float8_e4m3fn), low, offsets, first, escapes)


def rebuild(nested: NestedWeight) -> torch.Tensor:
    """The BF16 weight ``[N, K]``, bit for bit. The reference of every kernel here."""
    code = natural(nested.codes.view(torch.uint8)).int()
    magnitude = ((code & 0x7F) << 4) + natural(_unpack(nested.low)).int() - 8
    # A zero stays zero; every other code stands for a weight with its row's offset.
    magnitude = torch.where(magnitude == 0, 0, magnitude + (nested.offsets.int()[:, None] << 7))
    weight = (magnitude | ((code >> 7) << 15)).to(torch.int16).view(torch.bfloat16)
    used = int(nested.first[-1])
    column, packed = nested.escapes[:used].unbind(1)
    groups = weight.shape[1] // TILE_K
    tile = torch.arange(nested.first.numel() - 1, device=weight.device).repeat_interleave(
        nested.first.diff(), output_size=used
    )
    row = tile // groups * TILE_N + (packed >> 16)
    weight[row, column.long()] = (packed & 0xFFFF).to(torch.int16).view(torch.bfloat16)
    return weight


def ordered(matrix: torch.Tensor) -> torch.Tensor:
    """The columns of ``[R, K]`` in the order of :data:`ORDER`, in each group of 64."""
    groups = matrix.unflatten(1, (-1, 4, 2, 4, 2))  # group, s, high half of 16, t, odd: k = 16 s + 8 h + 2 t + o
    return groups.permute(0, 1, 4, 2, 5, 3).reshape(matrix.shape)  # group, t, s, o, h


def natural(matrix: torch.Tensor) -> torch.Tensor:
    """The reverse of :func:`ordered`."""
    groups = matrix.unflatten(1, (-1, 4, 4, 2, 2))
    return groups.permute(0, 1, 3, 5, 2, 4).reshape(matrix.shape)


def _split(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes uint8 and nibbles uint8 ``[N, K]``, offsets int16 ``[N]``, and which weights are escapes."""
    bits = weight.view(torch.int16).int() & 0xFFFF
    sign, magnitude = bits >> 15, bits & 0x7FFF
    exponent = magnitude >> 7
    largest = torch.where(exponent < 255, exponent, 0).amax(1, keepdim=True)  # infinities and NaN set no scale
    offset = (largest - _TOP_FIELD).clamp_(min=0)
    shifted = magnitude - (offset << 7)
    zero = magnitude == 0
    nests = (shifted >= 1 << 7) & (exponent < 255)
    shifted = torch.where(nests, shifted, 0)
    code = (shifted + 8) >> 4
    nibble = shifted - (code << 4) + 8
    code = torch.where(nests | zero, code | (sign << 7), 0)
    return code.to(torch.uint8), nibble.to(torch.uint8), offset.squeeze(1).to(torch.int16), ~nests & ~zero


def _pack(nibbles: torch.Tensor) -> torch.Tensor:
    """``[N, K]`` in the order of :data:`ORDER` to ``[N/16, K/64, 32, 16]``."""
    n, k = nibbles.shape
    # tile, row half h, g | 64 inputs a, t, step s, half-word j, odd p
    parts = nibbles.view(n // 16, 2, 8, k // 64, 4, 4, 2, 2)
    # A thread's word s holds, from bit 0: p of row g, p of row g + 8, and the same for the upper half-word.
    parts = parts.permute(0, 3, 2, 4, 5, 6, 1, 7)  # tile, a, g, t, s, j, h, p
    return (parts[..., 0] | (parts[..., 1] << 4)).reshape(n // 16, k // 64, 32, 16)


def _unpack(low: torch.Tensor) -> torch.Tensor:
    """The reverse of :func:`_pack`."""
    tiles, groups = low.shape[:2]
    parts = low.view(tiles, groups, 8, 4, 4, 2, 2)  # tile, a, g, t, s, j, h
    both = torch.stack((parts & 15, parts >> 4), dim=-1)
    return both.permute(0, 6, 2, 1, 3, 4, 5, 7).reshape(tiles * 16, groups * 64)
