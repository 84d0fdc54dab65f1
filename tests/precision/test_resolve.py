"""What each device makes of each policy."""

from __future__ import annotations

import pytest

from mixquant_agents.config import POLICY_PRESETS, NumberFormat, PrecisionPolicy
from mixquant_agents.errors import ConfigError, FormatRefusedError
from mixquant_agents.precision.plan import Reach
from mixquant_agents.precision.resolve import LayerFormat, PartFormats, resolve
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
        "mixquant-nvfp4-plain": Reach.BEFORE_LAST,
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


KV_FP8 = PrecisionPolicy(prefill_format="nvfp4", formats={"k_proj": "fp8", "v_proj": "fp8"})
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def test_parts_of_a_fused_layer_have_formats_of_their_own() -> None:
    resolved = resolve(KV_FP8, B200)
    nvfp4, fp8 = (LayerFormat(NumberFormat(name), emulated=False) for name in ("nvfp4", "fp8"))
    qkv = resolved.layer_format("model.layers.3.self_attn.qkv_proj", FUSED)
    assert qkv == PartFormats((nvfp4, fp8, fp8))
    assert qkv is not None
    assert qkv.name == "nvfp4-native + fp8-native + fp8-native"
    assert resolved.layer_format("model.layers.3.mlp.gate_up_proj", FUSED) == nvfp4
    assert resolved.layer_format("model.layers.3.self_attn.k_proj", {}) == fp8, "a model that vLLM does not fuse"
    assert resolved.formats == (nvfp4, fp8)


def test_first_pattern_that_names_a_part_or_its_layer_counts() -> None:
    policy = PrecisionPolicy(
        prefill_format="nvfp4", formats=(("k_proj", "nvfp4"), ("re:.*layers\\.0\\.", "fp8"), ("re:.*", "exact"))
    )
    resolved = resolve(policy, B200)
    nvfp4, fp8 = (LayerFormat(NumberFormat(name), emulated=False) for name in ("nvfp4", "fp8"))
    assert resolved.layer_format("model.layers.0.self_attn.qkv_proj", FUSED) == PartFormats((fp8, nvfp4, fp8))
    assert resolved.layer_format("model.layers.1.self_attn.qkv_proj", FUSED) == PartFormats((None, nvfp4, None))
    assert resolved.layer_format("model.layers.0.mlp.down_proj", FUSED) == fp8
    assert resolved.layer_format("model.layers.1.mlp.down_proj", FUSED) is None


def test_one_emulated_format_makes_all_of_them_emulated() -> None:
    resolved = resolve(KV_FP8, H100)
    assert resolved.emulated
    assert all(layer_format.emulated for layer_format in resolved.formats)
    mxfp4 = PrecisionPolicy(prefill_format="nvfp4", formats={"v_proj": "mxfp4"})
    assert resolve(mxfp4, B200).emulated
    assert "mxfp4" in (resolve(mxfp4, B200).reason or "")


def test_recipes_without_a_kernel_are_emulated_and_say_so() -> None:
    resolved = resolve(PrecisionPolicy(prefill_format="nvfp4", calibration="auto", residual_channels=64), B200)
    assert resolved.emulated
    assert "residual_channels=64 has no kernel here" in (resolved.reason or "")


@pytest.mark.parametrize("setting", ["weight_scales", "activation_scales"])
def test_4_6_block_scales_are_native_where_nvfp4_is(setting: str) -> None:
    policy = PrecisionPolicy.model_validate({"prefill_format": "nvfp4", setting: "4/6"})
    assert not resolve(policy, B200).emulated
    assert resolve(policy, H100).emulated


def test_exact_tokens_at_both_ends_become_the_row_rule() -> None:
    policy = PrecisionPolicy(prefill_format="nvfp4", exact_first_tokens=16, exact_last_token_from=1000)
    rule = resolve(policy, B200).rule()
    assert rule.interval(999) == (16, 999)
    assert rule.interval(1000) == (16, 999)
    assert rule.interval(2000) == (16, 1999)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"formats": {"k_proj": "fp8"}}, "named quantized prefill_format"),
        ({"prefill_format": "nvfp4", "formats": {"k_proj": "auto"}}, "cannot be 'auto'"),
        ({"prefill_format": "nvfp4", "formats": {"re:(": "fp8"}}, "formats holds"),
        ({"prefill_format": "nvfp4", "formats": {"k_proj": "fp9"}}, "fp9"),
        ({"prefill_format": "fp8", "weight_scales": "4/6"}, "are NVFP4's"),
        ({"prefill_format": "nvfp4", "weight_rounding": "gptq", "calibration": None}, "need a calibration"),
        ({"prefill_format": "nvfp4", "decode_format": "nvfp4", "exact_first_tokens": 4}, "quantizes every row"),
    ],
)
def test_policies_that_contradict_themselves_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrecisionPolicy(**fields)  # type: ignore[arg-type]


def test_formats_survive_json() -> None:
    assert PrecisionPolicy(**KV_FP8.model_dump(mode="json")) == KV_FP8
    assert hash(KV_FP8) == hash(PrecisionPolicy.model_validate_json(KV_FP8.model_dump_json()))


def test_auto_takes_nvfp4s_default_recipe_on_blackwell_and_keeps_its_name() -> None:
    blackwell = DeviceInfo("cuda", "NVIDIA B200", (10, 0))
    resolved = resolve(PrecisionPolicy.of("mixquant"), blackwell)
    assert (resolved.prefill_format, resolved.name) == (NumberFormat.NVFP4, "mixquant")
    assert resolved.policy == PrecisionPolicy.of("mixquant-nvfp4")
    assert resolved.rule() == resolve(PrecisionPolicy.of("mixquant-nvfp4"), blackwell).rule()
    sent = PrecisionPolicy.model_validate(PrecisionPolicy().model_dump(mode="json"))  # as a worker gets it
    assert resolve(sent, blackwell).policy == PrecisionPolicy.of("mixquant-nvfp4")
    assert resolve(PrecisionPolicy(row_threshold=7), blackwell).rule().last == 124
    own = resolve(PrecisionPolicy(exact_last_tokens=4), blackwell)
    assert (own.rule().last, own.rule().first, own.policy.calibration) == (4, 0, None)
    assert resolve(PrecisionPolicy(), CPU).policy == PrecisionPolicy()


def test_without_a_calibration_values_are_rounded_to_the_nearest() -> None:
    policy = PrecisionPolicy.of("mixquant-nvfp4")
    names = [resolve(policy, CPU, calibrated=there).default_format.name for there in (True, False)]  # type: ignore[union-attr] # it quantizes
    assert names == ["nvfp4-emulated-gptq-w46-balanced", "nvfp4-emulated-w46"]


@pytest.mark.parametrize("device", [L4, H100, CPU])
def test_nested_storage_is_taken_where_it_is_asked_for(device: DeviceInfo) -> None:
    resolved = resolve(PrecisionPolicy(prefill_format="fp8", storage="nested"), device)
    assert resolved.storage == "nested"
    (layer,) = resolved.formats
    assert (layer.nested, layer.emulated) == (True, device is CPU)
    assert resolved.layer_format("model.layers.0.mlp.up_proj", {}) == layer
    experts = resolved.layer_format("model.layers.0.mlp.experts", {})
    assert experts == LayerFormat(NumberFormat.FP8, layer.emulated), "experts' twins lie beside their weights"
    assert resolve(PrecisionPolicy(storage="separate", prefill_format="fp8"), device).storage == "separate"


def test_nested_storage_follows_an_automatic_format() -> None:
    nested = PrecisionPolicy(storage="nested")
    assert resolve(nested, H100).storage == "nested"
    for device, reason in ((B200, "'nvfp4'"), (CPU, "'exact'")):
        with pytest.raises(FormatRefusedError, match=f"storage='nested' is refused.*{reason}"):
            resolve(nested, device)


@pytest.mark.parametrize("device", [A100, B200, RTX5090])
def test_nested_storage_is_refused_where_there_is_no_product(device: DeviceInfo) -> None:
    with pytest.raises(FormatRefusedError, match=f"{device.name}.*Ada and Hopper have.*storage 'auto'"):
        resolve(PrecisionPolicy(prefill_format="fp8", storage="nested"), device)


def test_automatic_storage_never_refuses() -> None:
    for policy in POLICY_PRESETS.values():
        for device in (CPU, A100, L4, H100, B200, RTX5090):
            resolved = resolve(policy, device)
            assert resolved.storage == "separate" or resolved.prefill_format is NumberFormat.FP8
