"""What calibration sees of a model's inputs."""

from __future__ import annotations

import torch
from tiny_llama import tiny_llama

from mixquant_agents.quant.calibration.collect import collect
from mixquant_agents.quant.calibration.network import batches


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
