"""GPTQ's rounding against nearest rounding, on what it minimizes; and its codes are NVFP4's."""

from __future__ import annotations

import pytest
import torch

from mixquant_agents.quant.calibration.gptq import gptq, moved
from mixquant_agents.quant.numerics import e2m1, nvfp4

N, K, ROWS = 32, 160, 2000


def inputs(seed: int = 0) -> torch.Tensor:
    """Strongly correlated channels, as activations are: a few directions and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(16, K, generator=generator)
    noise = 0.2 * torch.randn(ROWS, K, generator=generator)
    return torch.randn(ROWS, 16, generator=generator) @ mixing / 4 + noise


def loss(weight: torch.Tensor, rounded: nvfp4.Nvfp4Tensor, x: torch.Tensor) -> float:
    return float((x @ (nvfp4.dequantize(rounded) - weight).T).square().mean())


@pytest.mark.parametrize("four_over_six", [False, True])
def test_outputs_are_nearer_than_with_nearest_rounding(four_over_six: bool) -> None:
    weights = torch.randn(2, N, K, generator=torch.Generator().manual_seed(1))
    xs = [inputs(2), inputs(3)]
    made = gptq(weights, torch.stack([x.T @ x for x in xs]), four_over_six=four_over_six)
    for weight, x, rounded in zip(weights, xs, made, strict=True):
        scale = nvfp4.tensor_global_scale(weight, four_over_six)
        nearest = nvfp4.quantize(weight, scale, four_over_six)
        assert loss(weight, rounded, x) < 0.6 * loss(weight, nearest, x)
        assert torch.equal(rounded.global_scale, scale)
        assert rounded.packed.shape == (N, K // 2)


@pytest.mark.parametrize("setting", ["sweep", "ordered"])
def test_variants_are_nearer_than_nearest_rounding_too(setting: str) -> None:
    weights = torch.randn(2, N, K, generator=torch.Generator().manual_seed(21))
    xs = [inputs(22), inputs(23)]
    seconds = torch.stack([x.T @ x for x in xs])
    plain, variant = gptq(weights, seconds), gptq(weights, seconds, **{setting: True})
    for weight, x, before, after in zip(weights, xs, plain, variant, strict=True):
        nearest = nvfp4.quantize(weight, nvfp4.tensor_global_scale(weight))
        assert loss(weight, after, x) < 0.6 * loss(weight, nearest, x)
        assert not torch.equal(before.packed, after.packed)
        assert after.packed.shape == before.packed.shape
        assert after.scales.shape == before.scales.shape


def test_weights_side_by_side_are_rounded_as_each_alone() -> None:
    weights = torch.randn(3, N, K, generator=torch.Generator().manual_seed(4))
    seconds = torch.stack([x.T @ x for x in (inputs(5), inputs(6), inputs(7))])
    together = gptq(weights, seconds)
    for number in range(3):
        alone = gptq(weights[number : number + 1], seconds[number : number + 1])[0]
        same = (e2m1.unpack(alone.packed) == e2m1.unpack(together[number].packed)).float().mean()
        assert same > 0.999  # sums of another order may tip a tie


def test_uncorrelated_inputs_make_it_nearest_rounding() -> None:
    weight = torch.randn(1, N, K, generator=torch.Generator().manual_seed(8))
    made = gptq(weight, torch.eye(K).unsqueeze(0))[0]
    nearest = nvfp4.quantize(weight[0], nvfp4.tensor_global_scale(weight[0]))
    assert torch.equal(made.packed, nearest.packed)
    assert torch.equal(made.scales.float(), nearest.scales.float())


def test_channels_that_are_always_zero_do_no_harm() -> None:
    x = inputs(9)
    x[:, 5:40] = 0
    weight = torch.randn(1, N, K, generator=torch.Generator().manual_seed(10))
    made = gptq(weight, (x.T @ x).unsqueeze(0))[0]
    assert torch.isfinite(nvfp4.dequantize(made)).all()
    assert loss(weight[0], made, x) < float((x @ weight[0].T).square().mean()) * 0.02


def test_weight_is_moved_towards_what_rounded_inputs_need() -> None:
    x = inputs(11)
    q = x * 0.9 + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(12))
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(13))
    second, cross = q.T @ q, x.T @ q
    better = moved(weight, second, cross, shrink=1e-4)
    before, after = (((x @ weight.T) - (q @ w.T)).square().mean() for w in (weight, better))
    assert after < 0.5 * before
    torch.testing.assert_close(moved(weight, second, second), weight, rtol=1e-4, atol=1e-4)
