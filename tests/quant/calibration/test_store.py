"""Calibrations on disk, and their way into an engine's twins."""

from __future__ import annotations

import pathlib

import pytest
import torch

from mixquant_agents.errors import ConfigError, FormatRefusedError
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.calibration.store import Calibration, file_name, folder_of, save
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration

NAME = "model.layers.0.mlp.down_proj"
N, K = 32, 64
GPTQ = Recipe("gptq", "4/6")


@pytest.fixture
def known() -> LayerCalibration:
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(0))
    return LayerCalibration(0.25, torch.arange(K).flip(0), nvfp4.quantize(weight, nvfp4.tensor_global_scale(weight)))


def policy(folder: pathlib.Path, **fields: object) -> PrecisionPolicy:
    return PrecisionPolicy(prefill_format="nvfp4", calibration=str(folder), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe("gptq"), GPTQ, Recipe("gptq-behind"), Recipe("gptq-behind", "4/6")]
)
def test_what_is_saved_is_read_again(tmp_path: pathlib.Path, known: LayerCalibration, recipe: Recipe) -> None:
    path = save(tmp_path, recipe, {NAME: known})
    assert path.name == file_name(recipe)
    read = Calibration(path).layer(NAME, N, K)
    assert read.activation_scale == 0.25
    assert read.channels is not None
    assert torch.equal(read.channels, torch.arange(K).flip(0))
    assert read.twin is not None
    assert known.twin is not None
    assert torch.equal(nvfp4.dequantize(read.twin), nvfp4.dequantize(known.twin))
    assert [each.name for each in tmp_path.iterdir()] == [path.name], "no partial file is left"


def test_channel_scales_have_a_file_of_their_own(tmp_path: pathlib.Path, known: LayerCalibration) -> None:
    scale = torch.exp2(torch.arange(K) % 5 - 2.0)
    balanced = Recipe("gptq", channel_scales="balanced")
    save(tmp_path, Recipe("gptq"), {NAME: known})
    path = save(tmp_path, balanced, {NAME: known._replace(channel_scale=scale)})
    assert path.name == "gptq-balanced.safetensors"
    asked = policy(tmp_path, weight_rounding="gptq", channel_scales="balanced")
    calibration = Calibration.of(asked, None)
    assert calibration is not None
    read = calibration.layer(NAME, N, K).channel_scale
    assert read is not None
    assert torch.equal(read, scale)
    assert Calibration(tmp_path / file_name(Recipe("gptq"))).layer(NAME, N, K).channel_scale is None
    save(tmp_path, balanced, {NAME: LayerCalibration(channel_scale=scale)})
    half = Calibration(path)
    with pytest.raises(FormatRefusedError, match=r"not sharded.*channel_scales='none'"):
        half.layer(NAME, N, K // 2)


def test_missing_and_foreign_calibrations_are_refused_with_the_remedy(
    tmp_path: pathlib.Path, known: LayerCalibration
) -> None:
    with pytest.raises(FormatRefusedError, match=r"mixquant calibrate MODEL --gptq --weight-scales 4/6"):
        Calibration.of(policy(tmp_path, weight_rounding="gptq", weight_scales="4/6"), None)
    behind = policy(tmp_path, weight_rounding="gptq-behind", exact_first_tokens=16)
    with pytest.raises(FormatRefusedError, match=r"gptq-behind.safetensors.*calibrate MODEL --gptq --behind"):
        Calibration.of(behind, None)
    save(tmp_path, GPTQ, {NAME: known})
    read = Calibration(tmp_path / file_name(GPTQ))
    with pytest.raises(FormatRefusedError, match="another model's"):
        read.layer("model.layers.9.mlp.down_proj", N, K)
    with pytest.raises(FormatRefusedError, match="tensor_parallel_size=1"):
        read.layer(NAME, N // 2, K)
    (tmp_path / "scales.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FormatRefusedError, match="cannot be read"):
        Calibration(tmp_path / "scales.safetensors")
    with pytest.raises(ConfigError, match="needs a model folder"):
        Calibration.of(policy(tmp_path).model_copy(update={"calibration": "auto"}), "some/hub-id")


def test_folder_follows_the_weights(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQUANT_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "a.safetensors").write_bytes(b"1" * 100)
    first = folder_of(model)
    assert first == folder_of(str(model))
    assert first.parent == tmp_path / "cache"
    (model / "a.safetensors").write_bytes(b"2" * 100)
    assert folder_of(model) != first


def test_engine_takes_scales_and_rounded_twins(tmp_path: pathlib.Path, known: LayerCalibration) -> None:
    save(tmp_path, GPTQ, {NAME: known})
    asked = policy(tmp_path, weight_rounding="gptq", weight_scales="4/6")
    runtime = Runtime(asked, DeviceInfo("cpu", "cpu"), switchable=True)
    layer_format = runtime.layer_format(NAME)
    assert layer_format is not None
    assert layer_format.name == "nvfp4-emulated-gptq-w46"
    twin, weight = twin_of(layer_format), torch.zeros(N, K)
    state = twin.build(weight, runtime.calibration_of(NAME, N, K))
    assert known.twin is not None
    torch.testing.assert_close(state.grid * state.scale, nvfp4.dequantize(known.twin), rtol=1e-6, atol=0)
    assert float(state.activation_scale) == 0.25
    assert runtime.status()["calibration"] == str(tmp_path / file_name(GPTQ))
    with pytest.raises(ConfigError, match="start another engine"):
        runtime.set_policy(policy(tmp_path))
    with pytest.raises(FormatRefusedError, match="needs a calibration with rounded twins"):
        twin.build(weight, UNCALIBRATED)
