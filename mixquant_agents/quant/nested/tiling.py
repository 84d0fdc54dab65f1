"""How a product is cut up among threads, and the cuts that are tried on a device.

A cut is compiled into the kernel (its fields are the macros of ``kernel.cu``), so each is a kernel of its own. Those
below were the fastest of some six hundred on an H200 for one layer of an 8B model; :mod:`product` times them on the
shapes at hand and takes the best.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["CUTS", "MAX_ROWS", "Tiling", "token_tiles"]

MAX_ROWS = 64
"""Most rows of one product."""

_SHARED_BYTES = 227 * 1024
"""Shared memory that a block may have on Hopper."""

_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """One cut.

    Attributes:
        nt: token tiles of 8.
        rt: weight-row tiles of 16 that a warp multiplies.
        wn, wk: warps of a block along N and along K; together at least 4.
        ck: blocks along K, one cluster.
        kc: inputs of a pipeline step, 64 or 128.
        depth: steps whose weights are in flight in registers; 0: they come through shared memory.
        stages: steps held in shared memory.
        minb: blocks that a multiprocessor should hold.
        wg: 1: by ``wgmma``, four warps together; 0: by ``mma``, each warp alone.
    """

    nt: int
    rt: int = 1
    wn: int
    wk: int
    ck: int
    kc: int = 128
    depth: int
    stages: int = 4
    minb: int
    wg: int = 0

    @property
    def rows(self) -> int:
        """Weight rows of a block."""
        return 16 * self.rt * self.wn

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.wn * self.wk

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the pipeline's stages, then the partial sums in their place."""
        tokens = self.wk * self.kc * _TOKENS * self.nt * 2
        weights = 0 if self.depth else 3 * self.rt * (self.kc // 64) * self.threads * 16
        sums = self.wk * _TOKENS * self.nt * (self.rows + 4) * 4
        return max(self.stages * (tokens + weights), sums)

    def fits(self, n: int, k: int) -> bool:
        """Whether a weight ``[N, K]`` can be cut up like this."""
        return (
            n % self.rows == 0
            and k % (self.ck * self.wk * 128) == 0
            and self.rows % (4 * self.ck) == 0
            and self.shared_bytes <= _SHARED_BYTES
        )

    def macros(self) -> dict[str, int]:
        """What the kernel is compiled with."""
        return {name.upper(): value for name, value in asdict(self).items()}


def token_tiles(rows: int) -> int:
    """Token tiles that a product of ``rows`` rows is compiled for: 1, 2, 4 or 8.

    Raises:
        ValueError: there are none, or more than 64.
    """
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"a nested product takes 1 to {MAX_ROWS} rows, not {rows}")
    return next(tiles for tiles in CUTS if rows <= _TOKENS * tiles)


CUTS: dict[int, tuple[Tiling, ...]] = {
    1: (
        Tiling(nt=1, wn=2, wk=4, ck=2, depth=1, minb=2),
        Tiling(nt=1, wn=2, wk=4, ck=1, depth=0, minb=1),
        Tiling(nt=1, wn=2, wk=4, ck=1, depth=1, minb=2),
        Tiling(nt=1, wn=2, wk=2, ck=1, depth=1, minb=5),
        Tiling(nt=1, wn=2, wk=2, ck=2, depth=0, stages=3, minb=4),
        Tiling(nt=1, wn=4, wk=1, ck=8, depth=1, minb=5),
        Tiling(nt=1, wn=4, wk=1, ck=1, depth=1, minb=5),
        Tiling(nt=1, wn=1, wk=4, ck=1, depth=1, minb=5),
    ),
    2: (
        Tiling(nt=2, wn=2, wk=2, ck=2, kc=64, depth=0, minb=5),
        Tiling(nt=2, wn=2, wk=2, ck=2, depth=1, minb=4),
        Tiling(nt=2, wn=2, wk=4, ck=1, depth=0, minb=1),
        Tiling(nt=2, wn=2, wk=4, ck=2, depth=1, minb=2),
        Tiling(nt=2, wn=4, wk=1, ck=1, depth=0, stages=3, minb=4),
        Tiling(nt=2, wn=4, wk=2, ck=1, depth=1, minb=2),
        Tiling(nt=2, wn=4, wk=1, ck=1, depth=1, minb=4),
        Tiling(nt=2, wn=1, wk=4, ck=1, depth=1, minb=4),
    ),
    4: (
        Tiling(nt=4, wn=4, wk=1, ck=4, kc=64, depth=0, minb=5),
        Tiling(nt=4, wn=2, wk=2, ck=2, depth=1, minb=4),
        Tiling(nt=4, wn=4, wk=2, ck=2, depth=0, minb=1),
        Tiling(nt=4, wn=4, wk=1, ck=1, depth=0, stages=3, minb=3),
        Tiling(nt=4, rt=2, wn=4, wk=1, ck=2, depth=1, minb=3),
        Tiling(nt=4, wn=4, wk=1, ck=8, depth=1, minb=5),
        Tiling(nt=4, wn=4, wk=1, ck=1, depth=1, minb=4),
        Tiling(nt=4, wn=1, wk=4, ck=1, depth=1, minb=3),
    ),
    8: (
        Tiling(nt=8, wn=8, wk=1, ck=4, depth=1, minb=2, wg=1),
        Tiling(nt=8, wn=4, wk=2, ck=2, depth=1, minb=2, wg=1),
        Tiling(nt=8, wn=4, wk=1, ck=1, depth=1, minb=3, wg=1),
        Tiling(nt=8, wn=4, wk=2, ck=2, depth=0, minb=1, wg=1),
        Tiling(nt=8, rt=2, wn=4, wk=1, ck=4, depth=1, minb=2),
        Tiling(nt=8, wn=4, wk=2, ck=2, depth=1, minb=1),
        Tiling(nt=8, wn=4, wk=1, ck=1, depth=1, minb=3),
        Tiling(nt=8, wn=1, wk=4, ck=1, depth=1, stages=2, minb=1),
    ),
}
"""Cuts to try, by token tiles. One fits wherever N is a multiple of 64, or K one of 512."""
