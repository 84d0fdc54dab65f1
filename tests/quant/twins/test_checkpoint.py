"""Twins from pre-quantized checkpoints, in both layouts; whatever does not match is refused by name."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
import torch
from safetensors.torch import save_file

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError, FormatRefusedError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.formats.registry import emulated_twin
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.twins.checkpoint import TwinCheckpoint

K, NAMES = 64, ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj")
WEIGHTS = [torch.randn(n, K, generator=torch.Generator().manual_seed(n)) * (1 + n) for n in (48, 16)]

EMULATED = emulated_twin(LayerFormat(NumberFormat.NVFP4, emulated=True))


def quantized(shared: bool) -> list[nvfp4.Nvfp4Tensor]:
    scales = [nvfp4.tensor_global_scale(torch.cat(WEIGHTS) if shared else w) for w in WEIGHTS]
    return [nvfp4.quantize(w, scale) for w, scale in zip(WEIGHTS, scales, strict=True)]


def tensors(layout: str, shared: bool = True) -> dict[str, torch.Tensor]:
    found = {}
    for name, q in zip(NAMES, quantized(shared), strict=True):
        found[f"{name}.weight_scale"] = q.scales
        if layout == "modelopt":
            found[f"{name}.weight"] = q.packed
            found[f"{name}.weight_scale_2"] = 1.0 / q.global_scale
        else:
            found[f"{name}.weight_packed"] = q.packed
            found[f"{name}.weight_global_scale"] = q.global_scale.reshape(1)
    return found


def saved(folder: pathlib.Path, content: dict[str, torch.Tensor]) -> TwinCheckpoint:
    save_file({name: tensor.contiguous() for name, tensor in content.items()}, folder / "model.safetensors")
    return TwinCheckpoint(str(folder))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("layout", ["compressed-tensors", "modelopt"])
def test_twin_has_exactly_the_checkpoints_values(tmp_path: pathlib.Path, layout: str, shared: bool) -> None:
    checkpoint = saved(tmp_path, tensors(layout, shared))
    checkpoint.check(NAMES, 64, K)
    read = checkpoint.read(NAMES)
    expected = torch.cat([nvfp4.dequantize(q) for q in quantized(shared)])
    assert read.global_scale.ndim == (0 if shared else 2)
    # ModelOpt stores the reciprocal of the scale: one rounding of float32 more
    torch.testing.assert_close(nvfp4.dequantize(read), expected, rtol=2**-22, atol=0)
    state = EMULATED.adopt(read, torch.float32)
    grid, scale = state.grid, state.scale
    torch.testing.assert_close(grid * (scale.unsqueeze(1) if scale.ndim else scale), expected, rtol=2**-22, atol=0)
    x = torch.randn(5, K, generator=torch.Generator().manual_seed(9))
    weight_only = emulated_twin(LayerFormat(NumberFormat.NVFP4, emulated=True, weight_only=True))
    torch.testing.assert_close(weight_only.product(PlainRows(x), state), x @ expected.T, rtol=1e-4, atol=1e-3)


def test_adopting_equals_building_when_the_scale_is_shared(tmp_path: pathlib.Path) -> None:
    read = saved(tmp_path, tensors("compressed-tensors")).read(NAMES)
    for adopted, built in zip(EMULATED.adopt(read, torch.float32), EMULATED.build(torch.cat(WEIGHTS)), strict=True):
        assert torch.equal(adopted, built)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{NAMES[0]}.weight_packed": None}, rf"{NAMES[0]}\.weight_packed is missing"),
        ({f"{NAMES[1]}.weight_scale": None}, rf"{NAMES[1]}\.weight_scale is missing, so this layer is not NVFP4"),
        ({f"{NAMES[0]}.weight_packed": torch.zeros(48, 16, dtype=torch.uint8)}, "has 32 columns, the model's layer 64"),
        ({f"{NAMES[0]}.weight_packed": torch.zeros(48, 32)}, "is F32, not packed codes"),
        ({f"{NAMES[1]}.weight_scale": torch.zeros(16, 2).to(torch.float8_e4m3fn)}, "not blocks of 16"),
        (
            {
                f"{NAMES[1]}.weight_packed": torch.zeros(8, 32, dtype=torch.uint8),
                f"{NAMES[1]}.weight_scale": torch.zeros(8, 4).to(torch.float8_e4m3fn),
            },
            "have 56 rows together, the model's layer 64",
        ),
    ],
)
def test_mismatch_is_refused_by_name(
    tmp_path: pathlib.Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    content = {**tensors("compressed-tensors"), **change}
    checkpoint = saved(tmp_path, {name: tensor for name, tensor in content.items() if tensor is not None})
    with pytest.raises(FormatRefusedError, match=message):
        checkpoint.check(NAMES, 64, K)


def test_folder_without_a_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FormatRefusedError, match="holds no"):
        TwinCheckpoint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(FormatRefusedError, match=r"model\.safetensors cannot be read"):
        TwinCheckpoint(str(tmp_path))
    with pytest.raises(FormatRefusedError, match="neither a folder nor on the hub"):
        TwinCheckpoint("nobody/nothing-NVFP4")


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ("{", "cannot be read"),
        ('{"weights": {}}', "cannot be read"),
        ('{"weight_map": ["model.safetensors"]}', "cannot be read"),
        ('{"weight_map": {"x": "model-00002.safetensors"}}', "model-00002.safetensors is not there"),
    ],
)
def test_damaged_or_incomplete_listing_is_refused(tmp_path: pathlib.Path, listing: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(listing)
    with pytest.raises(FormatRefusedError, match=re.escape(message)):
        TwinCheckpoint(str(tmp_path))


def test_damaged_part_is_refused(tmp_path: pathlib.Path) -> None:
    listed = {
        f"{NAMES[0]}.{end}": "part.safetensors" for end in ("weight_packed", "weight_scale", "weight_global_scale")
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    (tmp_path / "part.safetensors").write_bytes(b"half a downl")
    with pytest.raises(FormatRefusedError, match=r"part\.safetensors cannot be read"):
        TwinCheckpoint(str(tmp_path)).check(NAMES[:1], 48, K)


def test_other_formats_do_not_adopt() -> None:
    twin = emulated_twin(LayerFormat(NumberFormat.FP8, emulated=True))
    weight = nvfp4.quantize(WEIGHTS[0], nvfp4.tensor_global_scale(WEIGHTS[0]))
    with pytest.raises(FormatRefusedError, match=r"fp8 cannot use a prefill_checkpoint"):
        twin.adopt(weight, torch.float32)


def test_checkpoint_belongs_to_the_engine(tmp_path: pathlib.Path) -> None:
    saved(tmp_path, tensors("modelopt"))
    policy = PrecisionPolicy(prefill_format="nvfp4", prefill_checkpoint=str(tmp_path))
    state = Runtime(policy, DeviceInfo("cpu", "cpu"), switchable=True)
    state.set_policy(PrecisionPolicy.of("exact"))
    with pytest.raises(ConfigError, match="start another engine"):
        Runtime(PrecisionPolicy.of("mixquant-nvfp4-plain"), DeviceInfo("cpu", "cpu"), switchable=True).set_policy(
            policy
        )


def test_native_twin_passes_codes_on_and_refuses_differing_scales(tmp_path: pathlib.Path) -> None:
    from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin

    class Kernel:
        """Takes the place of vLLM's, which changes the layout for its GPU."""

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            pass

    twin = Nvfp4Twin(kernel=Kernel())
    read = saved(tmp_path, tensors("compressed-tensors")).read(NAMES)
    state = twin.adopt(read, torch.bfloat16)
    codes, scales = state.weight, state.weight_scale
    assert torch.equal(codes, read.packed)
    assert torch.equal(scales.float(), read.scales.float())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FormatRefusedError, match="different global scales"):
        twin.adopt(saved(tmp_path, tensors("compressed-tensors", shared=False)).read(NAMES), torch.bfloat16)
