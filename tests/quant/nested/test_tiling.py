import pytest

from mixquant_agents.quant.nested.tiling import CUTS, token_tiles

LAYER = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288)}


def test_token_tiles_cover_the_rows() -> None:
    assert [token_tiles(rows) for rows in (1, 8, 9, 16, 17, 32, 33, 64)] == [1, 1, 2, 2, 4, 4, 8, 8]
    for rows in (0, 65):
        with pytest.raises(ValueError, match=f"1 to 64 rows, not {rows}"):
            token_tiles(rows)


@pytest.mark.parametrize("tiles", CUTS)
def test_cuts_are_for_their_tiles_and_fit_an_8b_layer(tiles: int) -> None:
    assert all(cut.nt == tiles for cut in CUTS[tiles])
    for n, k in LAYER.values():
        assert sum(cut.fits(n, k) for cut in CUTS[tiles]) >= 4


@pytest.mark.parametrize("tiles", CUTS)
def test_weight_has_a_cut_where_n_is_a_multiple_of_64_or_k_of_512(tiles: int) -> None:
    """Tensor-parallel shards of common models, and the smallest."""
    for n, k in [(16, 512), (64, 128), (1536, 4096), (6144, 3072), (4864, 896), (576, 1536), (48, 1024)]:
        assert any(cut.fits(n, k) for cut in CUTS[tiles]), (n, k)


def test_cuts_keep_to_what_the_kernel_supports() -> None:
    for cut in (cut for cuts in CUTS.values() for cut in cuts):
        assert cut.threads // (cut.kc // 8) % 8 == 0, "tokens are copied in groups of 8 rows, which share a swizzle"
        assert not cut.wg or (cut.wn % 4 == 0 and cut.stages >= 3)
        assert cut.stages >= 2
