"""How a product is cut up among threads, and the cuts that are tried on a device.

A cut is compiled into the kernel (its fields are the macros of ``kernel.cu``), so each is a kernel of its own. Those
below were the fastest of some hundreds on an H200 for one layer of an 8B model; :mod:`product` times them on the
shapes at hand and takes the best.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

__all__ = ["CUTS", "MAX_ROWS", "AnyTiling", "StagedTiling", "Tiling", "WideTiling", "fitting", "token_tiles"]

MAX_ROWS = 256
"""Most rows of one product."""

_SHARED_BYTES = 227 * 1024
"""Shared memory that a block may have on Hopper."""

_SHARED_BYTES_OF_TWO = 113 * 1024
"""What each of two blocks may have on one multiprocessor."""

_SHARED_BYTES_ADA = 99 * 1024

_MOST_SCRATCH = 2**21
"""Most floats of partial sums in memory, 8 MiB: they should stay in the cache."""

_TOKENS = 8

_STEP = 64
"""Inputs of a step of ``staged.cu``."""

HOPPER = (9, 0)
"""Its compute capability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """One cut of the kernel for few rows, ``kernel.cu``.

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
        pdl: 1: weights are fetched while the kernel before it ends.
        codes_only: 1: the product with the FP8 twin instead of the exact weight, tokens unquantized.
    """

    source: ClassVar[str] = "kernel.cu"

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
    pdl: int = 1
    codes_only: int = 0

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
            and k % (self.ck * self.wk * self.kc) == 0
            and self.rows % (4 * self.ck) == 0
            and self.shared_bytes <= _SHARED_BYTES
        )

    def grid(self, n: int) -> tuple[int, int]:
        """Blocks along N and along K."""
        return n // self.rows, self.ck

    def macros(self) -> dict[str, int]:
        """What the kernel is compiled with."""
        return {name.upper(): value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class WideTiling:
    """One cut of the kernel for more rows, ``wide.cu``.

    Attributes:
        nt, ck, kc, stages, minb, pdl: as in :class:`Tiling`.
        wgs: warpgroups of a block, of 64 weight rows each.
        cn: blocks along N that share one read of the tokens, part of the cluster.
        patch: 1: escapes are put among the other weights; 0: they are multiplied afterwards.
    """

    source: ClassVar[str] = "wide.cu"

    nt: int
    wgs: int = 2
    cn: int = 1
    ck: int = 1
    kc: int = 64
    stages: int
    minb: int = 1
    patch: int = 1
    pdl: int = 1

    @property
    def rows(self) -> int:
        """Weight rows of a block."""
        return 64 * self.wgs

    @property
    def threads(self) -> int:
        """Threads of a block: those that multiply, and a warp that copies (a warpgroup, where registers are short)."""
        return 128 * self.wgs + (128 if self.nt > 16 else 32)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the pipeline's stages or the partial sums, then two barriers for each stage."""
        stage = self.kc * _TOKENS * self.nt * 2 + self.rows * self.kc * 3 // 2
        sums = _TOKENS * self.nt * (self.rows + 4) * 4
        return max(self.stages * stage, sums) + 16 * self.stages

    def fits(self, n: int, k: int) -> bool:
        """Whether a weight ``[N, K]`` can be cut up like this."""
        return (
            n % (self.rows * self.cn) == 0
            and k % (self.ck * 128) == 0
            and self.nt % self.cn == 0
            and self.ck * self.cn <= 8
            and self.shared_bytes <= _SHARED_BYTES
        )

    def grid(self, n: int) -> tuple[int, int]:
        """Blocks along N and along K."""
        return n // self.rows, self.ck

    def macros(self) -> dict[str, int]:
        """What the kernel is compiled with."""
        return {"WG": 1, **{name.upper(): value for name, value in asdict(self).items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedTiling:
    """One cut of the kernel for 33 to 64 rows, ``staged.cu``.

    A barrier tells only odd turns of its stage from even ones, and a group of warps sees some of the steps only. So it
    must not be able to come a whole turn too early, see :attr:`is_safe`.

    Attributes:
        nt, minb, pdl: as in :class:`Tiling`.
        bn: weight rows of a block, 64 or 96.
        ck: blocks along K.
        tpw: tiles of 16 rows that a warp unpacks of a step.
        groups: groups of warps, which unpack the steps of 64 inputs in turns.
        cs, ts, us: stages of packed weights, of tokens and of unpacked weights.
        scratch: 1: sums of the blocks along K meet in memory; 0: these blocks are a cluster.
    """

    source: ClassVar[str] = "staged.cu"
    kc: ClassVar[int] = _STEP
    cn: ClassVar[int] = 1

    nt: int = 8
    bn: int
    ck: int = 1
    tpw: int = 2
    groups: int = 2
    cs: int
    ts: int
    us: int
    minb: int = 2
    scratch: int = 0
    pdl: int = 1

    @property
    def rows(self) -> int:
        """Weight rows of a block."""
        return self.bn

    @property
    def threads(self) -> int:
        """Threads of a block: a warpgroup that multiplies, the groups that unpack, and two warps that copy."""
        return 128 + 32 * self.groups * (self.bn // 16 // self.tpw) + 64

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the stages or the partial sums, then two barriers for each stage, and a flag."""
        rings = self.us * self.bn * 128 + self.ts * 8192 + self.cs * self.bn * 96
        return max(rings, 64 * (self.bn + 8) * 4) + 16 * (self.cs + self.ts + self.us) + 16

    @property
    def is_safe(self) -> bool:
        """Whether a group of warps never takes a stage for one a turn ahead: either all turns of a stage are its own,
        or what it waited for in its step before implies that the stage's turn before has ended."""
        return self.groups <= self.us and (self.cs % self.groups == 0 or self.cs >= self.groups + self.us)

    def scratch_floats(self, n: int) -> int:
        """Partial sums in memory, of a weight of ``n`` rows."""
        return 64 * n * self.ck if self.scratch else 0

    def fits(self, n: int, k: int) -> bool:
        """Whether a weight ``[N, K]`` can be cut up like this."""
        return (
            n % self.bn == 0
            and k % (self.ck * _STEP) == 0
            and self.shared_bytes <= (_SHARED_BYTES if self.minb == 1 else _SHARED_BYTES_OF_TWO)
            and self.scratch_floats(n) <= _MOST_SCRATCH
        )

    def grid(self, n: int) -> tuple[int, int]:
        """Blocks along N and along K."""
        return n // self.bn, self.ck

    def macros(self) -> dict[str, int]:
        """What the kernel is compiled with."""
        return {"WG": 1, "KC": _STEP, "PATCH": 1, **{name.upper(): value for name, value in asdict(self).items()}}


AnyTiling = Tiling | WideTiling | StagedTiling


def token_tiles(rows: int, tiles: Iterable[int] | None = None) -> int:
    """Token tiles that a product of ``rows`` rows is compiled for: the fewest of ``tiles``, or of :data:`CUTS`.

    Raises:
        ValueError: there are no rows, or too many.
    """
    known = sorted(CUTS if tiles is None else tiles)
    if not 1 <= rows <= _TOKENS * known[-1]:
        raise ValueError(f"a nested product takes 1 to {_TOKENS * known[-1]} rows, not {rows}")
    return next(count for count in known if rows <= _TOKENS * count)


def fitting(
    n: int, k: int, capability: tuple[int, int] = HOPPER, codes_only: bool = False
) -> dict[int, tuple[AnyTiling, ...]]:
    """The cuts that fit a weight ``[N, K]`` on a device of this compute capability, by token tiles; those alone that
    have any. ``codes_only``: of the product with the FP8 twin, up to 64 rows."""
    cuts: dict[int, tuple[AnyTiling, ...]] = {}
    for tiles in CUTS:
        candidates = (_on(capability, cut) for cut in CUTS[tiles] if cut.fits(n, k))
        usable = tuple(cut for cut in candidates if cut is not None)
        if codes_only:
            usable = tuple(replace(cut, codes_only=1) for cut in usable if isinstance(cut, Tiling))
        if usable:
            cuts[tiles] = usable
    return cuts


def _on(capability: tuple[int, int], cut: AnyTiling) -> AnyTiling | None:
    """The cut on such a device: before Hopper there are no clusters, no ``wgmma``, and less shared memory."""
    if capability >= HOPPER:
        return cut
    if not isinstance(cut, Tiling) or cut.wg or cut.ck > 1 or cut.shared_bytes > _SHARED_BYTES_ADA:
        return None
    return replace(cut, pdl=0, minb=min(cut.minb, 3))


CUTS: dict[int, tuple[AnyTiling, ...]] = {
    1: (
        Tiling(nt=1, wn=2, wk=2, ck=1, depth=1, minb=5),
        Tiling(nt=1, wn=2, wk=4, ck=1, depth=0, minb=1),
        Tiling(nt=1, wn=2, wk=2, ck=2, depth=0, stages=3, minb=4),
        Tiling(nt=1, wn=2, wk=4, ck=2, depth=1, minb=2),
        Tiling(nt=1, wn=1, wk=4, ck=1, depth=1, minb=5),
        Tiling(nt=1, wn=4, wk=1, ck=1, kc=64, depth=1, minb=5),
    ),
    2: (
        Tiling(nt=2, wn=2, wk=4, ck=1, depth=0, minb=1),
        Tiling(nt=2, wn=4, wk=1, ck=1, depth=0, stages=3, minb=4),
        Tiling(nt=2, wn=2, wk=2, ck=2, kc=64, depth=0, minb=5),
        Tiling(nt=2, wn=2, wk=2, ck=2, depth=1, minb=4),
        Tiling(nt=2, wn=1, wk=4, ck=1, depth=1, minb=4),
        Tiling(nt=2, wn=4, wk=1, ck=1, kc=64, depth=1, minb=4),
    ),
    4: (
        Tiling(nt=4, wn=4, wk=2, ck=2, depth=0, minb=1),
        Tiling(nt=4, wn=4, wk=1, ck=1, depth=0, stages=3, minb=3),
        Tiling(nt=4, wn=4, wk=1, ck=4, kc=64, depth=0, minb=5),
        Tiling(nt=4, wn=2, wk=2, ck=2, depth=1, minb=4),
        Tiling(nt=4, wn=1, wk=4, ck=1, depth=1, minb=3),
        Tiling(nt=4, wn=4, wk=1, ck=1, kc=64, depth=1, minb=3),
    ),
    8: (
        StagedTiling(bn=96, tpw=3, cs=5, ts=3, us=3),
        StagedTiling(bn=96, ck=2, tpw=3, cs=6, ts=4, us=2),
        StagedTiling(bn=64, ck=2, groups=3, cs=8, ts=5, us=3),
        StagedTiling(bn=64, ck=4, groups=3, cs=8, ts=5, us=3, scratch=1),
        Tiling(nt=8, wn=4, wk=2, ck=2, depth=0, minb=1, wg=1),
        Tiling(nt=8, wn=8, wk=1, ck=4, depth=1, minb=2, wg=1),
        WideTiling(nt=8, wgs=2, ck=2, kc=64, stages=5, minb=2),
        WideTiling(nt=8, wgs=2, ck=4, kc=128, stages=5),
        Tiling(nt=8, wn=1, wk=4, ck=1, depth=1, stages=2, minb=1),
        Tiling(nt=8, wn=4, wk=1, ck=1, kc=64, depth=1, minb=2),
    ),
    16: (
        WideTiling(nt=16, wgs=1, ck=4, kc=64, stages=3, minb=3),
        WideTiling(nt=16, wgs=2, ck=2, kc=128, stages=4),
        WideTiling(nt=16, wgs=1, ck=2, kc=64, stages=5, minb=2),
        WideTiling(nt=16, wgs=1, ck=1, kc=64, stages=8),
    ),
    32: (
        WideTiling(nt=32, wgs=1, ck=2, kc=64, stages=5),
        WideTiling(nt=32, wgs=2, ck=2, kc=128, stages=2),
        WideTiling(nt=32, wgs=2, ck=1, kc=64, stages=5),
        WideTiling(nt=32, wgs=1, ck=1, kc=64, stages=5),
    ),
}
"""Cuts to try, by token tiles: the fastest of some hundreds on an H200 for a layer of an 8B model, and general ones. Up
to 64 rows one fits wherever N is a multiple of 64, or K one of 512."""
