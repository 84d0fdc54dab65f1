"""A missing calibration: made once where a GPU is, and never in an engine's way."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence

import pytest
import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.calibration import at_load
from mixquant_agents.quant.calibration.at_load import calibration_for, command
from mixquant_agents.quant.calibration.store import folder_of, save
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.twins.calibrated import LayerCalibration

POLICY = PrecisionPolicy.of("mixquant-nvfp4")
CPU, GPU = DeviceInfo("cpu", "cpu"), DeviceInfo("cuda", "NVIDIA H200", (9, 0))
KNOWN = LayerCalibration(0.5, torch.arange(32), nvfp4.quantize(torch.ones(16, 32), torch.tensor(1.0)))


@pytest.fixture
def model(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MIXQUANT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_calibration_is_made_once_on_a_gpu(model: str) -> None:
    made: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> None:
        made.append(words)
        save(folder_of(model), POLICY.recipe, {"layers.0.mlp.down_proj": KNOWN})

    for _ in range(2):
        calibration, reason = calibration_for(POLICY, model, GPU, make=True, run=run)
        assert reason is None
        assert calibration is not None
        assert calibration.layer("layers.0.mlp.down_proj", 16, 32).activation_scale == 0.5
    assert made == [command(model, POLICY)]
    assert made[0][0] == sys.executable
    assert made[0][-6:] == ["--rounding", "gptq", "--weight-scales", "4/6", "--channel-scales", "balanced"]


@pytest.mark.parametrize(
    ("device", "make", "reason"),
    [(CPU, True, "not on a CPU"), (GPU, False, "not while an engine runs"), (GPU, True, "out of memory")],
)
def test_engine_starts_without_one_and_says_why(model: str, device: DeviceInfo, make: bool, reason: str) -> None:
    calibration, found = calibration_for(POLICY, model, device, make=make, run=lambda words: "out of memory")
    assert calibration is None
    assert found is not None
    assert reason in found


def test_runtime_without_one_rounds_to_the_nearest(model: str) -> None:
    runtime = Runtime(POLICY, CPU, switchable=True, model=model)
    assert runtime.status()["calibration"] is None
    assert "mixquant calibrate" in runtime.status()["uncalibrated"]
    assert runtime.status()["twin"] == "nvfp4-emulated-w46"
    runtime.set_policy(PrecisionPolicy.of("mixquant-nvfp4-plain"))
    assert runtime.status()["uncalibrated"] is None
    runtime.set_policy(POLICY)
    assert runtime.status()["uncalibrated"]


def test_runtime_takes_one_that_was_made_meanwhile(model: str) -> None:
    runtime = Runtime(PrecisionPolicy.of("exact"), CPU, switchable=True, model=model)
    save(folder_of(model), POLICY.recipe, {"layers.0.mlp.down_proj": KNOWN})
    runtime.set_policy(POLICY)
    assert runtime.status()["twin"] == "nvfp4-emulated-gptq-w46-balanced"


def test_folder_that_is_named_must_be_there(tmp_path: pathlib.Path) -> None:
    named = POLICY.model_copy(update={"calibration": str(tmp_path)})
    with pytest.raises(FormatRefusedError, match="there is no calibration"):
        calibration_for(named, None, GPU, make=True)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ('print(\'{"what": "x", "share": 0.5}\')', None),
        ("raise SystemExit('no memory')", "calibrating failed: no memory"),
        ("print('a library says this'); print(7); print('[]'); print('{}')", None),
        ("import sys; sys.stdout.buffer.write(bytes([255, 10]))", None),
    ],
)
def test_process_that_fails_tells_its_last_words(script: str, reason: str | None) -> None:
    found = at_load._run([sys.executable, "-c", script])
    assert found == reason if reason is None else reason in (found or "")


def test_layers_that_the_cache_does_not_know_are_rounded_to_the_nearest(model: str) -> None:
    save(folder_of(model), POLICY.recipe, {"layers.0.mlp.down_proj": KNOWN})
    runtime = Runtime(POLICY, CPU, switchable=True, model=model)
    layer_format = runtime.layer_format("layers.0.mlp.down_proj")
    assert layer_format is not None
    twin, weight = twin_of(layer_format), torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    sharded = twin.build(weight, runtime.calibration_of("layers.0.mlp.down_proj", 8, 32))
    nearest = nvfp4.split_tensor(weight, four_over_six=True)
    assert torch.equal(sharded.grid * sharded.scale, nearest[0] * nearest[1])
    assert runtime.status()["uncalibrated_layers"] == 1
    assert runtime.calibration_of("layers.0.mlp.down_proj", 16, 32).twin is None, "its parts would not fit together"
    save(folder_of(model), POLICY.recipe, {})
    named = POLICY.model_copy(update={"calibration": str(folder_of(model))})
    with pytest.raises(FormatRefusedError, match="has no layer"):
        Runtime(named, CPU, switchable=True).calibration_of("layers.0.mlp.down_proj", 16, 32)


def test_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_load, "SECONDS", 0.5)
    found = at_load._run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert found == "calibrating failed: status -9"


def test_process_that_writes_much_to_its_errors_does_not_block() -> None:
    script = 'import sys; sys.stderr.write(\'x\' * 300_000); print(\'{"what": "x", "share": 1}\')'
    assert at_load._run([sys.executable, "-c", script]) is None


def test_calibration_that_failed_is_not_tried_again_at_every_start(model: str) -> None:
    tried: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> str:
        tried.append(words)
        return "out of memory"

    reasons = [calibration_for(POLICY, model, GPU, make=True, run=run)[1] for _ in range(2)]
    assert len(tried) == 1
    assert all("out of memory" in (reason or "") for reason in reasons)
    assert "by hand: mixquant calibrate" in (reasons[1] or "")
    (failed,) = folder_of(model).glob("*.failed")
    an_hour_ago = failed.stat().st_mtime - 3700
    os.utime(failed, (an_hour_ago, an_hour_ago))
    assert calibration_for(POLICY, model, GPU, make=True, run=lambda words: None)[0] is None, "nothing was written"
    assert not failed.exists()
    save(folder_of(model), POLICY.recipe, {"layers.0.mlp.down_proj": KNOWN})
    assert calibration_for(POLICY, model, GPU, make=True, run=run)[1] is None


@pytest.mark.parametrize("error", [NotImplementedError("no locks here"), TypeError("what"), MemoryError()])
def test_whatever_fails_the_engine_starts(model: str, error: Exception) -> None:
    def run(words: Sequence[str]) -> str:
        raise error

    calibration, reason = calibration_for(POLICY, model, GPU, make=True, run=run)
    assert calibration is None
    assert type(error).__name__ in (reason or "")
