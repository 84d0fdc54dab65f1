import pytest

from mixquant_agents.quant.nested.tiling import CUTS, StagedTiling, Tiling, WideTiling, fitting, token_tiles

LAYER = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288)}


def test_token_tiles_cover_the_rows() -> None:
    rows_and_tiles = {1: 1, 8: 1, 9: 2, 16: 2, 17: 4, 32: 4, 33: 8, 64: 8, 65: 16, 128: 16, 129: 32, 256: 32}
    assert {rows: token_tiles(rows) for rows in rows_and_tiles} == rows_and_tiles
    for rows in (0, 257):
        with pytest.raises(ValueError, match=f"1 to 256 rows, not {rows}"):
            token_tiles(rows)


@pytest.mark.parametrize("tiles", CUTS)
def test_cuts_are_for_their_tiles_and_fit_an_8b_layer(tiles: int) -> None:
    assert all(cut.nt == tiles for cut in CUTS[tiles])
    for n, k in LAYER.values():
        assert sum(cut.fits(n, k) for cut in CUTS[tiles]) >= 4


@pytest.mark.parametrize("tiles", [tiles for tiles in CUTS if tiles <= 8])
def test_weight_has_a_cut_where_n_is_a_multiple_of_64_or_k_of_512(tiles: int) -> None:
    """Tensor-parallel shards of common models, and the smallest."""
    for n, k in [(16, 512), (64, 128), (1536, 4096), (6144, 3072), (4864, 896), (576, 1536), (48, 1024), (960, 576)]:
        assert any(cut.fits(n, k) for cut in CUTS[tiles]), (n, k)


def test_cuts_keep_to_what_the_kernels_support() -> None:
    for cut in (cut for cuts in CUTS.values() for cut in cuts):
        if isinstance(cut, StagedTiling):
            assert cut.is_safe
            assert cut.bn in (64, 96), "the kernel has no other wgmma"
            assert cut.bn // 16 % cut.tpw == 0
            continue
        assert cut.stages >= 2
        if isinstance(cut, Tiling):
            assert cut.threads // (cut.kc // 8) % 8 == 0, "tokens are copied in groups of 8 rows, which share a swizzle"
            assert not cut.wg or (cut.wn % 4 == 0 and cut.stages >= 3)


def test_wide_tiling_counts_its_shared_memory() -> None:
    cut = WideTiling(nt=8, wgs=2, ck=2, kc=64, stages=4)
    tokens, codes, low = 64 * 64 * 2, 128 * 64, 128 * 32
    assert cut.shared_bytes == 4 * (tokens + codes + low) + 4 * 16
    assert WideTiling(nt=32, stages=2).shared_bytes == 256 * (128 + 4) * 4 + 2 * 16, "sums need more than two stages"
    assert cut.grid(6144) == (48, 2)
    assert not WideTiling(nt=8, cn=2, stages=4).fits(128, 4096), "two blocks share tokens, and there is one"
    assert not WideTiling(nt=8, cn=2, ck=8, stages=4).fits(6144, 4096), "a cluster holds 8 blocks"


def test_staged_tiling_counts_its_shared_memory() -> None:
    cut = StagedTiling(bn=96, ck=2, cs=5, ts=3, us=3)
    codes, low, tokens, unpacked = 96 * 64, 96 * 32, 64 * 64 * 2, 96 * 64 * 2
    assert cut.shared_bytes == 5 * (codes + low) + 3 * tokens + 3 * unpacked + (5 + 3 + 3) * 16 + 16
    assert cut.shared_bytes <= 113 * 1024, "two blocks share a multiprocessor"
    assert (cut.grid(6144), cut.threads) == ((64, 2), 128 + 6 * 32 + 64)
    assert not StagedTiling(bn=96, cs=8, ts=3, us=3).fits(6144, 4096), "one alone would fit"
    in_memory = StagedTiling(bn=64, ck=4, cs=8, ts=5, us=3, scratch=1)
    assert (in_memory.scratch_floats(4096), cut.scratch_floats(6144)) == (4 * 64 * 4096, 0)
    assert in_memory.fits(8192, 4096)
    assert not in_memory.fits(8256, 4096), "sums would leave the cache"


@pytest.mark.parametrize(
    ("groups", "cs", "us", "safe"),
    [(2, 5, 3, True), (1, 2, 2, True), (3, 4, 3, False), (3, 4, 4, False), (3, 9, 3, True), (3, 8, 2, False)],
)
def test_groups_that_could_come_a_turn_too_early_are_known(groups: int, cs: int, us: int, safe: bool) -> None:
    """Those with three groups and four stages failed on a GPU."""
    assert StagedTiling(bn=96, groups=groups, cs=cs, ts=3, us=us).is_safe is safe


def test_cuts_of_a_device_before_hopper_use_what_it_has() -> None:
    for n, k in LAYER.values():
        cuts = fitting(n, k, (8, 9))
        assert set(cuts) == {1, 2, 4, 8}
        for cut in (cut for some in cuts.values() for cut in some):
            assert isinstance(cut, Tiling)
            assert (cut.wg, cut.ck, cut.pdl) == (0, 1, 0)
            assert cut.shared_bytes <= 99 * 1024
    assert set(fitting(6144, 4096)) == set(CUTS)
    assert fitting(48, 192) == {}, "such a weight is unpacked"


def test_twin_is_multiplied_by_the_cuts_of_few_rows() -> None:
    cuts = fitting(6144, 4096, codes_only=True)
    assert set(cuts) == {1, 2, 4, 8}
    assert all(cut.macros()["CODES_ONLY"] == 1 for some in cuts.values() for cut in some)
    assert all(cut.macros().get("CODES_ONLY", 0) == 0 for some in fitting(6144, 4096).values() for cut in some)
