"""What calibration sees of a model's inputs."""

from __future__ import annotations

import torch
from tiny_llama import tiny_llama

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.quant.calibration.collect import collect, layer_calibrations
from mixquant_agents.quant.calibration.network import batches
from mixquant_agents.quant.formats.registry import format_of
from mixquant_agents.quant.ops.sources import PlainRows


def test_moments_are_of_tokens_behind_the_first_and_peaks_of_all() -> None:
    """Padding is in neither, and a text that ends earlier adds nothing."""
    network = tiny_llama(32).eval()
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(0, 32, (length,), generator=generator).tolist() for length in (30, 12, 20)]
    made = batches(texts, network.device)
    assert len(made) == 1
    whole, behind = collect(network, made, moments=True), collect(network, made, moments=True, behind=16)
    inputs: list[torch.Tensor] = []
    layer = network.model.layers[1].self_attn.q_proj
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for text in texts:
        with torch.inference_mode():
            network(torch.tensor([text]))
    handle.remove()
    name = "model.layers.1.self_attn.qkv_proj"
    rows = torch.cat([x[0, 16:] for x in inputs])
    assert rows.shape[0] == 14 + 0 + 4
    torch.testing.assert_close(behind[name].second, rows.T @ rows, rtol=1e-4, atol=1e-4)
    every = torch.cat([x[0] for x in inputs])
    torch.testing.assert_close(whole[name].second, every.T @ every, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(behind[name].peaks, every.abs().amax(0))


def test_channels_are_scaled_behind_norms_and_activations_alone() -> None:
    network = tiny_llama(32).eval()
    with torch.no_grad():
        for block in network.model.layers:
            block.input_layernorm.weight[::16] *= 64  # one loud channel in each block
    texts = [torch.randint(0, 32, (40,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(4)]
    made = batches(texts, network.device)
    seen = collect(network, made, moments=True, sampled=True)
    shares: list[float] = []
    calibrations = layer_calibrations(network, seen, twins=True, channel_scales=True, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert len(shares) > 8  # finding scales, which takes as long as rounding, is told layer by layer
    own = calibrations["model.layers.1.self_attn.qkv_proj"]
    assert own.channel_scale is not None
    assert own.channel_scale[::16].mean() < own.channel_scale.mean()
    assert calibrations["model.layers.1.self_attn.o_proj"].channel_scale is None
    none = layer_calibrations(network, seen, twins=True)["model.layers.1.self_attn.qkv_proj"]
    x = seen["model.layers.1.self_attn.qkv_proj"].sample
    assert x is not None
    weight = torch.cat([getattr(network.model.layers[1].self_attn, f"{part}_proj").weight for part in "qkv"]).detach()
    twin = format_of(NumberFormat.NVFP4).emulated("nvfp4", weight_only=False, recipe=Recipe("gptq"))
    errors = [
        (twin.product(PlainRows(x), twin.build(weight, known)) - x @ weight.T).square().sum() for known in (own, none)
    ]
    assert errors[0] < 0.8 * errors[1]
