"""The plan's way through one step: made once, taken once, void afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mixquant_agents.config import NumberFormat, PrecisionPolicy
from mixquant_agents.errors import ConfigError, FormatRefusedError, OutOfMemoryError
from mixquant_agents.precision.plan import Mode, RequestRows
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant import runtime as runtime_module
from mixquant_agents.quant.router import GraphSettings
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.step import EXACT, QUANTIZED, forced
from mixquant_agents.quant.twins.memory import TwinMemory

CPU = DeviceInfo("cpu", "cpu")


def make_runtime(policy: str | PrecisionPolicy = "mixquant-nvfp4-plain", **fields: Any) -> Runtime:
    return Runtime(PrecisionPolicy.of(policy), CPU, switchable=True, **fields)


def test_passes_before_the_first_step_run_quantized_as_memory_profiling_needs_it() -> None:
    step = make_runtime().take_plan(512)
    assert (step.mode, step.rows) == (Mode.QUANTIZED, 512)
    assert make_runtime().take_plan(None) is EXACT
    assert make_runtime("exact").take_plan(512) is EXACT


def test_plan_goes_to_the_first_forward_that_is_wide_enough() -> None:
    runtime = make_runtime()
    runtime.begin_step()
    step = runtime.plan_step([RequestRows("r", 8, 0, 8)])
    assert step.requests == (RequestRows("r", 8, 0, 8),)
    assert runtime.take_plan(3) is EXACT, "an encoder's pass"
    assert runtime.take_plan(None) is EXACT, "an encoder's that says nothing of tokens"
    assert runtime.take_plan(8) is step
    assert runtime.take_plan(8) is EXACT, "a draft model's pass"
    assert runtime.end_step()


def test_plan_that_nobody_took_is_void_in_the_next_step() -> None:
    runtime = make_runtime()
    runtime.begin_step()
    runtime.plan_step([RequestRows("r", 8, 0, 8)])
    runtime.end_step()
    runtime.begin_step()
    assert runtime.take_plan(8) is EXACT
    assert not runtime.end_step()


def test_forced_step_stands_above_the_plan_and_leaves_it_there() -> None:
    runtime = make_runtime()
    runtime.begin_step()
    step = runtime.plan_step([RequestRows("r", 8, 0, 8)])
    with forced(QUANTIZED):
        assert runtime.take_plan(8) is QUANTIZED
        with forced(EXACT):
            assert runtime.take_plan(8) is EXACT
        assert runtime.take_plan(8) is QUANTIZED
    assert runtime.take_plan(8) is step


def test_switching_needs_an_eager_engine_only_where_weights_change() -> None:
    runtime = Runtime(PrecisionPolicy.of("mixquant-nvfp4-plain"), CPU, switchable=False)
    used = []
    layer: Any = SimpleNamespace(
        prefix="model.layers.0.mlp.down_proj",
        layer_format=runtime.layer_format("model.layers.0.mlp.down_proj"),
        use=used.append,
    )
    runtime.add_layer(layer)
    runtime.set_policy(PrecisionPolicy.of("uniform-nvfp4"))
    assert used == [layer.layer_format]
    with pytest.raises(ConfigError, match="enforce_eager=True"):
        runtime.set_policy(PrecisionPolicy.of("mixquant-fp8"))
    with pytest.raises(ConfigError, match="enforce_eager=True"):
        runtime.set_policy(PrecisionPolicy(prefill_format="nvfp4", ignored_layers=("down_proj",)))
    assert runtime.resolved.policy == PrecisionPolicy.of("uniform-nvfp4")
    assert len(used) == 1


def test_refused_policy_changes_nothing() -> None:
    runtime = make_runtime()
    with pytest.raises(FormatRefusedError):
        Runtime(PrecisionPolicy.of("mixquant-fp8"), DeviceInfo("tpu", "TPU"), switchable=True)
    assert runtime.status()["twin"] == "nvfp4-emulated"


def test_layer_whose_weight_is_refused_leaves_all_layers_and_rows_as_they_were() -> None:
    runtime = make_runtime()
    nested = PrecisionPolicy(prefill_format="fp8", storage="nested")

    def layer(name: str, refuses: bool) -> Any:
        prefix = f"model.layers.0.mlp.{name}"
        made = SimpleNamespace(prefix=prefix, layer_format=runtime.layer_format(prefix))

        def use(layer_format: Any) -> None:
            if refuses and layer_format is not None and layer_format.nested:
                raise FormatRefusedError("no BF16 numbers")
            made.layer_format = layer_format

        made.use = use
        return made

    layers = [layer("up_proj", False), layer("down_proj", True)]
    for each in layers:
        runtime.add_layer(each)
    before = [each.layer_format for each in layers]
    with pytest.raises(FormatRefusedError, match="no BF16 numbers"):
        runtime.set_policy(nested)
    assert [each.layer_format for each in layers] == before
    assert runtime.resolved.policy == runtime.router.resolved.policy == PrecisionPolicy.of("mixquant-nvfp4-plain")


def test_limit_of_experts_twins_is_the_engines_own() -> None:
    runtime = make_runtime("mixquant-fp8")
    limited = PrecisionPolicy(prefill_format="fp8", expert_twins_gib=1)
    prefix = "model.layers.0.mlp.experts"
    layer: Any = SimpleNamespace(prefix=prefix, layer_format=runtime.layer_format(prefix), reads_by_row=False)
    layer.use = lambda layer_format: None
    runtime.add_layer(layer)
    runtime.set_policy(limited)  # of a dense model: there are no experts
    runtime.set_policy(PrecisionPolicy.of("mixquant-fp8"))
    layer.reads_by_row = True
    with pytest.raises(ConfigError, match=r"expert_twins_gib=1.0 is not what .* \(None\).*start another engine"):
        runtime.set_policy(limited)
    runtime.set_policy(PrecisionPolicy.of("exact"))


def test_calibration_is_made_for_nvfp4_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[PrecisionPolicy] = []

    def calibration_for(policy: PrecisionPolicy, *args: object, **kwargs: object) -> tuple[None, str]:
        made.append(policy)
        return None, "not today"

    monkeypatch.setattr(runtime_module, "calibration_for", calibration_for)
    automatic = PrecisionPolicy(calibration="auto")  # FP8 on Hopper
    hopper = DeviceInfo("cuda", "H100", (9, 0))
    assert Runtime(automatic, hopper, switchable=False, graphs=GraphSettings(4, False)).uncalibrated is None
    assert not made
    runtime = Runtime(PrecisionPolicy(prefill_format="nvfp4", calibration="auto"), CPU, switchable=True)
    assert runtime.uncalibrated == "not today"
    assert len(made) == 1


def test_memory_of_nested_weights_is_their_own_and_not_beside_others() -> None:
    memory = TwinMemory("a test", lambda: 10 * 2**30)
    with pytest.raises(OutOfMemoryError, match=r"nested weights need more than 11\.0 GiB, and 10\.0 GiB are free"):
        memory.add(11 * 2**30, beside=False)


def test_twins_reserve_what_they_weigh(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = make_runtime()
    runtime._memory = TwinMemory("a test", lambda: 100_000)
    runtime.reserve(60_000)
    with pytest.raises(OutOfMemoryError, match="policy 'exact'"):
        runtime.reserve(60_000)


def test_drafts_are_set_up_with_the_engine_and_not_later() -> None:
    runtime = make_runtime("mixquant-fp8")
    drafting = PrecisionPolicy(prefill_format=NumberFormat.FP8, draft="twin")
    with pytest.raises(ConfigError, match=r"draft='twin' is not what this engine was started with \(None"):
        runtime.set_policy(drafting)
    runtime.set_policy(PrecisionPolicy(prefill_format=NumberFormat.FP8, draft="auto"))
    runtime.set_policy(PrecisionPolicy.of("exact"))
    other = make_runtime(drafting)
    with pytest.raises(ConfigError, match="start another one"):
        other.set_policy(PrecisionPolicy.of("mixquant-fp8"))
    other.set_policy(drafting.model_copy(update={"row_threshold": 5}))
