"""What each device makes of each policy."""

from __future__ import annotations

import pytest

from mixquant_agents.config import POLICY_PRESETS, NumberFormat, PrecisionPolicy
from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.plan import Reach
from mixquant_agents.precision.resolve import LayerFormat, resolve
from mixquant_agents.precision.support import DeviceInfo, format_support

CPU = DeviceInfo("cpu", "cpu")
A100 = DeviceInfo("cuda", "NVIDIA A100", (8, 0))
L4 = DeviceInfo("cuda", "NVIDIA L4", (8, 9))
H100 = DeviceInfo("cuda", "NVIDIA H100", (9, 0))
B200 = DeviceInfo("cuda", "NVIDIA B200", (10, 0))
RTX5090 = DeviceInfo("cuda", "NVIDIA GeForce RTX 5090", (12, 0))
TPU = DeviceInfo("tpu", "TPU v5e")


@pytest.mark.parametrize(
    ("device", "nvfp4", "fp8", "int8"),
    [
        (CPU, "emulated", "emulated", "emulated"),
        (A100, "emulated", "emulated", "native"),
        (L4, "emulated", "native", "native"),
        (H100, "emulated", "native", "native"),
        (TPU, "refused", "refused", "refused"),
    ],
)
def test_support_by_device(device: DeviceInfo, nvfp4: str, fp8: str, int8: str) -> None:
    found = {f: format_support(NumberFormat(f), device) for f in ("nvfp4", "fp8", "int8")}
    assert {f: s.status for f, s in found.items()} == {"nvfp4": nvfp4, "fp8": fp8, "int8": int8}
    assert all((s.reason is None) == (s.status == "native") for s in found.values())


@pytest.mark.parametrize("device", [B200, RTX5090])
def test_blackwell_runs_fp8(device: DeviceInfo) -> None:
    assert format_support(NumberFormat.FP8, device).status == "native"


@pytest.mark.parametrize(("device", "expected"), [(CPU, "exact"), (A100, "exact"), (L4, "fp8"), (H100, "fp8")])
def test_auto_takes_what_runs_natively(device: DeviceInfo, expected: str) -> None:
    resolved = resolve(PrecisionPolicy(), device)
    assert resolved.prefill_format.value == expected
    assert not resolved.emulated
    assert (resolved.reason is None) == (expected != "exact")


def test_named_format_without_hardware_is_emulated_and_says_why() -> None:
    resolved = resolve(PrecisionPolicy.of("mixquant-nvfp4"), H100)
    assert resolved.emulated
    assert "Blackwell" in (resolved.reason or "")


@pytest.mark.parametrize("number_format", ["nvfp4", "fp8", "int8"])
def test_weights_alone_in_a_format_are_an_emulation_everywhere(number_format: str) -> None:
    policy = PrecisionPolicy(prefill_format=number_format, weight_only=True)
    for device in (CPU, H100, B200):
        resolved = resolve(policy, device)
        assert resolved.emulated
        assert resolved.reason
        assert resolved.row_threshold == 0


@pytest.mark.parametrize(
    ("preset", "last"),
    [
        ("exact", True),
        ("mixquant-nvfp4", True),
        ("mixquant-fp8", False),
        ("mixquant-int8", False),
        ("uniform-nvfp4", False),
        ("uniform-fp8", False),
    ],
)
def test_last_prompt_token_by_preset(preset: str, last: bool) -> None:
    assert resolve(POLICY_PRESETS[preset], CPU).exact_last_token is last


@pytest.mark.parametrize("asked", [True, False])
def test_last_prompt_token_as_asked(asked: bool) -> None:
    policy = PrecisionPolicy(prefill_format="nvfp4", exact_last_token=asked)
    assert resolve(policy, CPU).exact_last_token is asked


def test_thresholds() -> None:
    assert resolve(PrecisionPolicy.of("mixquant-fp8"), H100).row_threshold is None
    assert resolve(PrecisionPolicy.of("mixquant-fp8"), CPU).row_threshold == 0
    assert resolve(PrecisionPolicy(prefill_format="fp8", reproducible=True), H100).row_threshold == 0
    assert resolve(PrecisionPolicy(prefill_format="fp8", row_threshold=64), H100).row_threshold == 64
    assert resolve(PrecisionPolicy.of("mixquant-fp8"), H100).rule(200).threshold == 200
    assert resolve(PrecisionPolicy(prefill_format="fp8", row_threshold=64), H100).rule(200).threshold == 64


def test_rules_of_the_presets() -> None:
    reach = {name: resolve(policy, CPU).rule().reach for name, policy in POLICY_PRESETS.items()}
    assert reach == {
        "exact": Reach.NOTHING,
        "mixquant": Reach.NOTHING,
        "mixquant-nvfp4": Reach.BEFORE_LAST,
        "mixquant-fp8": Reach.PROMPT,
        "mixquant-int8": Reach.PROMPT,
        "uniform-nvfp4": Reach.EVERYTHING,
        "uniform-fp8": Reach.EVERYTHING,
        "uniform-int8": Reach.EVERYTHING,
        "mixquant-mxfp4": Reach.BEFORE_LAST,
        "uniform-mxfp4": Reach.EVERYTHING,
    }


def test_layer_formats_by_name() -> None:
    policy = PrecisionPolicy(prefill_format="nvfp4", weight_only=True, ignored_layers=("down_proj",))
    resolved = resolve(policy, B200)
    assert resolved.layer_format("model.layers.0.mlp.down_proj", {}) is None
    layer = resolved.layer_format("model.layers.0.mlp.gate_up_proj", {})
    assert layer == LayerFormat(NumberFormat.NVFP4, emulated=True, weight_only=True)
    assert layer.name == "nvfp4-emulated-weight-only"
    native = resolve(PrecisionPolicy.of("mixquant-fp8"), H100).default_format
    assert native is not None
    assert native.name == "fp8-native"
    assert resolve(PrecisionPolicy.of("exact"), H100).layer_format("model.layers.0.mlp.up_proj", {}) is None


def test_unknown_device_is_refused_with_a_remedy() -> None:
    with pytest.raises(FormatRefusedError, match=r"TPU v5e.*policy 'exact'"):
        resolve(PrecisionPolicy.of("mixquant-fp8"), TPU)
