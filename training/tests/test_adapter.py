"""Low-rank updates: their file, growing, their mean; and that the shipped adapter is what the card says."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixquant_agents.embedded.adapter import adapter_folder, merge
from mixquant_training.adapter import Adapter, grown, save
from mixquant_training.adapter import load as read
from mixquant_training.mean import mean


def test_grown_adapter_keeps_the_update(tmp_path: pathlib.Path) -> None:
    adapter = Adapter(4, 2.0)
    for up in adapter.up.values():
        up.data.normal_()
    larger = grown(adapter, 6, "bfloat16")
    save(larger, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 6
    again = read(tmp_path)
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        wanted = adapter.delta(name)
        assert torch.equal(larger.delta(name), wanted) or (larger.delta(name) - wanted).abs().max() < 1e-4
        assert (again.delta(name) - wanted).abs().max() < 2e-2 * wanted.abs().max()  # rounded as the file is
    with pytest.raises(ValueError, match="give that or a larger one"):
        grown(adapter, 3, "bfloat16")


def test_float8_file_gives_back_what_training_saw(tmp_path: pathlib.Path) -> None:
    adapter = Adapter(6, 2.0, stored="float8")
    for up in adapter.up.values():
        up.data.normal_(std=0.05)
    adapter.up["mlp-up_proj"].data[0, 0, 0] = 9.0  # beyond the format's range: saturated, not infinite
    size = save(adapter, tmp_path)
    assert size < 1.1 * sum(part.numel() for part in adapter.parameters()) + 60_000  # one byte a value
    again = read(tmp_path)
    assert (again.rank, again.scale) == (6, 2.0)
    for name in ("self_attn.k_proj", "mlp.up_proj"):
        assert torch.equal(again.delta(name), adapter.delta(name))
        exact = 2.0 * torch.bmm(adapter.up[name.replace(".", "-")], adapter.down[name.replace(".", "-")])
        if name != "mlp.up_proj":
            assert 0.001 < (adapter.delta(name) - exact).norm() / exact.norm() < 0.05
    adapter.delta("mlp.up_proj").sum().backward()
    gradient = adapter.down["mlp-up_proj"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    linear = torch.nn.Linear(576, 1536, bias=False)
    before = linear.weight.detach().clone()
    layer = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"up_proj": linear})})
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    kept = {key: value for key, value in tensors.items() if ".layers.0.mlp.up_proj." in key}
    save_file(kept, tmp_path / "adapter_model.safetensors")
    assert merge(model, tmp_path) == 1
    assert torch.allclose(linear.weight.detach() - before, again.delta("mlp.up_proj")[0], atol=1e-5)


def test_mean_lies_between_its_parts() -> None:
    one = Adapter(4, 2.0, stored="float8")
    for up in one.up.values():
        up.data.normal_(std=0.05)
    other = grown(one, 4, "float8")
    for part in other.parameters():
        part.data += 0.01 * torch.randn_like(part)
    middle = mean([one, other])
    assert (middle.rank, middle.scale, middle.stored) == (4, 2.0, "float8")
    both = (one.delta("mlp.up_proj") + other.delta("mlp.up_proj")) / 2
    assert (middle.delta("mlp.up_proj") - both).norm() < 0.1 * both.norm()
    near = mean([one, other], [3, 1])
    apart = (one.delta("mlp.up_proj") - other.delta("mlp.up_proj")).norm()
    assert (near.delta("mlp.up_proj") - one.delta("mlp.up_proj")).norm() < 0.4 * apart
    with pytest.raises(ValueError, match="one positive number for each"):
        mean([one, other], [1, 0])
    with pytest.raises(ValueError, match=r"ranks \[4, 6\]"):
        mean([one, Adapter(6, 2.0)])
    with pytest.raises(ValueError, match="give two or more"):
        mean([one])


def test_shipped_adapter_is_small_and_whole() -> None:
    folder = adapter_folder()
    assert folder is not None
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (folder / "adapter_model.safetensors").stat().st_size <= 12_000_000
    assert config["r"] == 38
    assert read(folder).scale == 2.0  # what lora_alpha says once the file's gains are taken out
    assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0")
