"""Merging an adapter: the arithmetic, and what is refused."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from safetensors.torch import save_file

from mixquant_agents.embedded.adapter import adapter_identity, merge
from mixquant_agents.errors import DamagedWeightsError


class Tiny(torch.nn.Module):
    """Two Linear layers under a dotted name."""

    def __init__(self) -> None:
        super().__init__()
        self.block = torch.nn.ModuleDict({"up": torch.nn.Linear(6, 4), "down": torch.nn.Linear(4, 6)})


def _save(folder: pathlib.Path, *, rows: int = 4, rank: int = 2, name: str = "block.up") -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    prefix = f"base_model.model.{name}"
    tensors = {
        f"{prefix}.lora_A.weight": torch.randn(rank, 6).bfloat16(),
        f"{prefix}.lora_B.weight": torch.randn(rows, rank).bfloat16(),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 3 * rank}))
    return tensors


def test_merge_adds_scale_times_b_a_in_float32(tmp_path: pathlib.Path) -> None:
    down, up = _save(tmp_path).values()
    model = Tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert merge(model, tmp_path) == 1
    after = model.state_dict()
    expected = before["block.up.weight"] + 3 * (up.float() @ down.float())
    torch.testing.assert_close(after["block.up.weight"], expected, rtol=0, atol=0)
    for name in before.keys() - {"block.up.weight"}:
        assert torch.equal(before[name], after[name])


@pytest.mark.parametrize("wrong", [{"rows": 5}, {"name": "block.left"}, {"name": "block"}])
def test_adapter_of_another_model_is_refused(tmp_path: pathlib.Path, wrong: dict[str, int]) -> None:
    _save(tmp_path, **wrong)
    with pytest.raises(DamagedWeightsError, match="do not fit"):
        merge(Tiny(), tmp_path)


def test_damaged_files_are_refused(tmp_path: pathlib.Path) -> None:
    _save(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(DamagedWeightsError, match="cannot be read"):
        merge(Tiny(), tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DamagedWeightsError, match="cannot be read"):
        merge(Tiny(), tmp_path)
    weights.unlink()
    with pytest.raises(DamagedWeightsError, match="incomplete"):
        adapter_identity(tmp_path)


def test_identity_follows_every_byte(tmp_path: pathlib.Path) -> None:
    _save(tmp_path)
    before = adapter_identity(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    assert adapter_identity(tmp_path) != before
