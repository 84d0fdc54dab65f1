"""Whatever is asked for: an engine can be planned, or it is refused by one error that says what to do."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.plan import RequestRows
from mixquant_agents.precision.policy import POLICY_PRESETS, PrecisionPolicy
from mixquant_agents.precision.resolve import ResolvedPolicy, resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.formats.registry import reference_twin, twin_of
from mixquant_agents.quant.router import GraphSettings, Router

DEVICES = [
    DeviceInfo("cpu", "a CPU"),
    *(DeviceInfo("cuda", f"a GPU {major}.{minor}", (major, minor)) for major, minor in
      ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))),
    DeviceInfo("xpu", "another"),
]  # fmt: skip
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
LAYERS = {
    "model.layers.0.self_attn.qkv_proj": (64, 16, 16),
    "model.layers.0.self_attn.o_proj": (64,),
    "model.layers.0.mlp.gate_up_proj": (128, 128),
    "model.layers.0.mlp.down_proj": (64,),
    "model.layers.1.mlp.experts": (64,),
    "transformer.h.0.self_attention.dense": (64,),
    "gpt_neox.layers.3.attention.query_key_value": (96,),
}
"""Outputs of each layer's parts, by its name."""
REMEDIES = ("use ", "leave ", "set ", "name ", "give ", "run ", "needs ", "choose ", "add ")

names = st.sampled_from(["k_proj", "v_proj", "qkv_proj", "o_proj", "down_proj", "experts", "re:.*layers", "dense"])
fields: dict[str, st.SearchStrategy[Any]] = {
    "prefill_format": st.sampled_from(list(NumberFormat)),
    "decode_format": st.sampled_from(list(NumberFormat)),
    "row_threshold": st.sampled_from(["auto", 0, 64]),
    "exact_last_token": st.sampled_from(["auto", True, False]),
    "exact_last_token_from": st.sampled_from([0, 512]),
    "exact_last_tokens": st.sampled_from([1, 124]),
    "exact_first_tokens": st.sampled_from([0, 4, 16]),
    "exact_static_prefix": st.booleans(),
    "formats": st.dictionaries(names, st.sampled_from(list(NumberFormat)), max_size=2),
    "weight_rounding": st.sampled_from(["nearest", "gptq", "gptq-behind"]),
    "weight_scales": st.sampled_from(["max", "4/6"]),
    "activation_scales": st.sampled_from(["max", "4/6"]),
    "channel_scales": st.sampled_from(["none", "balanced"]),
    "residual_channels": st.sampled_from([0, 32]),
    "ignored_layers": st.lists(names, max_size=2).map(tuple),
    "expert_twins_gib": st.sampled_from([None, 0.0, 10.0]),
    "weight_only": st.booleans(),
    "reproducible": st.booleans(),
    "draft": st.sampled_from([None, "twin", "auto"]),
    "draft_tokens": st.sampled_from(["auto", 1, 8]),
    "draft_ngram": st.booleans(),
    "draft_window": st.sampled_from(["auto", None, 64]),
    "prefill_checkpoint": st.sampled_from([None, "somewhere"]),
    "calibration": st.sampled_from([None, "auto", "somewhere"]),
    "storage": st.sampled_from(["auto", "separate", "nested"]),
}
assert set(fields) == set(PrecisionPolicy.model_fields), "a new setting belongs here, too"


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """A preset with a few settings changed: most of those can be had, and few of wholly random ones."""
    preset = POLICY_PRESETS[draw(st.sampled_from(sorted(POLICY_PRESETS)))]
    changed = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    return {**preset.model_dump(), **{name: draw(fields[name]) for name in changed}}


def check_plan(resolved: ResolvedPolicy, calibrated: bool) -> None:
    """All that is decided before weights are read agrees with itself."""
    assert resolved.prefill_format is not NumberFormat.AUTO
    assert resolved.quantizes == bool(resolved.formats)
    routed = {
        prefix: layer_format
        for prefix, widths in LAYERS.items()
        if (layer_format := resolved.layer_format(prefix, FUSED)) is not None
    }
    assert resolved.quantizes or not routed
    captured = set()
    for prefix, layer_format in routed.items():
        twin = twin_of(layer_format, LAYERS[prefix])
        captured.add(twin.captured)
        twin.check(sum(LAYERS[prefix]), 64, prefix)
        assert twin.nbytes(sum(LAYERS[prefix]), 64, torch.bfloat16) > 0
    for each in resolved.formats:
        assert each.emulated is resolved.emulated
        assert not (each.nested and resolved.policy.weight_only)
        assert calibrated or not each.recipe.needs_calibration
        reference_twin(each)
        captured.add(twin_of(each).captured)
    assert len(captured) <= 1, "one engine routes in graphs or in Python, for all of its layers"
    router = Router(resolved, GraphSettings(4, True) if captured == {True} else None)
    router.prepare(torch.device("cpu"))
    counted, step = router.route([RequestRows("a", 200, 0, 200), RequestRows("b", 5, 5, 1)])
    assert step.mode is counted.mode
    assert counted.num_quantized == 0 or resolved.quantizes


@given(changes(), st.sampled_from(DEVICES), st.booleans())
def test_policy_is_planned_or_refused_with_a_remedy(
    settings: dict[str, Any], device: DeviceInfo, calibrated: bool
) -> None:
    try:
        policy = PrecisionPolicy(**settings)
        check_plan(resolve(policy, device, calibrated=calibrated), calibrated)
    except ConfigError as error:
        message = str(error)
        assert "\n" not in message
        assert any(remedy in message for remedy in REMEDIES), message
