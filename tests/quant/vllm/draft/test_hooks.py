"""What the plugin makes of vLLM's configuration for drafts, and what it refuses by name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.vllm.draft import hooks, settings
from mixquant_agents.quant.vllm.draft.schedule import DraftCounts, DraftSchedule


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "device_info", lambda: DeviceInfo("cuda", "NVIDIA H200", (9, 0)))


def model(draft: str | None = "twin", prefill: str = "fp8", **changes: Any) -> Any:
    policy = {"prefill_format": prefill, "draft": draft}
    config = SimpleNamespace(quantization_config={"quant_method": "mixquant", "policy": policy})
    values = {"quantization": "mixquant", "hf_config": config, "model": "m", "is_hybrid": False,
              "is_multimodal_model": False, "enforce_eager": False}  # fmt: skip
    return SimpleNamespace(**(values | changes))


def parallel(**changes: int) -> Any:
    values = {"pipeline_parallel_size": 1, "data_parallel_size": 1, "decode_context_parallel_size": 1}
    return SimpleNamespace(**(values | changes))


def arguments(**changes: Any) -> Any:
    values = {"enable_lora": False, "async_scheduling": None, "speculative_config": None}
    return SimpleNamespace(**(values | changes))


def speculative(own: Any, model_config: Any, parallel_config: Any) -> Any:
    """vLLM's own function makes an object of the dict; ours stands before it."""

    def original(self: Any, target: Any, parallel: Any) -> Any:
        return None if self.speculative_config is None else SimpleNamespace(**self.speculative_config)

    return hooks._speculative_config(original)(own, model_config, parallel_config)


def test_twin_drafts_three_tokens_asynchronously() -> None:
    own = arguments()
    made = speculative(own, model(), parallel())
    assert (made.method, made.model, made.num_speculative_tokens) == ("draft_model", "m", 3)
    assert made.draft_sample_method == "probabilistic"
    assert {tokens for *_, tokens in made.num_speculative_tokens_per_batch_size} == {0, 3}, "graphs of both"
    assert own.async_scheduling is True


@pytest.mark.parametrize(
    ("own", "target", "ranks", "reason"),
    [
        ({"enable_lora": True}, {}, {}, "enable_lora"),
        ({"async_scheduling": False}, {}, {}, "async_scheduling=False"),
        ({"speculative_config": {"method": "eagle3", "model": "head"}}, {}, {}, "another drafter is set"),
        ({}, {"is_hybrid": True}, {}, "hybrid model"),
        ({}, {"is_multimodal_model": True}, {}, "multimodal model"),
        ({}, {"enforce_eager": True}, {}, "enforce_eager"),
        ({}, {"prefill": "nvfp4"}, {}, "emulated here"),
        ({}, {}, {"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({}, {}, {"data_parallel_size": 2}, "data_parallel_size"),
        ({}, {}, {"decode_context_parallel_size": 2}, "decode_context_parallel_size"),
    ],
)
def test_obstacles_are_refused_by_name_and_left_alone_by_auto(
    own: dict[str, Any], target: dict[str, Any], ranks: dict[str, int], reason: str
) -> None:
    with pytest.raises(ConfigError, match=rf"draft='twin' with .*{reason}.*leave draft None"):
        speculative(arguments(**own), model("twin", **target), parallel(**ranks))
    given = arguments(**own)
    made = speculative(given, model("auto", **target), parallel(**ranks))
    assert (made is None) == (given.speculative_config is None), "as if nobody had asked"
    assert given.async_scheduling is own.get("async_scheduling")


def test_settings_of_the_same_drafts_are_the_users_own() -> None:
    own = arguments(speculative_config={"method": "draft_model", "model": "m", "num_speculative_tokens": 5})
    assert speculative(own, model(), parallel()).num_speculative_tokens == 5


def test_other_models_and_policies_are_left_alone() -> None:
    for target in (model(None), model(quantization="fp8")):
        own = arguments()
        assert speculative(own, target, parallel()) is None
        assert own.async_scheduling is None


def engine(**changes: Any) -> Any:
    spec = SimpleNamespace(method="draft_model", model="m")
    values = {"speculative_config": spec, "model_config": model(), "parallel_config": parallel(), "lora_config": None,
              "use_v2_model_runner": True,
              "scheduler_config": SimpleNamespace(
                  async_scheduling=True, max_num_scheduled_tokens=None, max_num_batched_tokens=8192)}  # fmt: skip
    return SimpleNamespace(**(values | changes))


def test_runner_v2_takes_the_twin_and_no_other_draft_model() -> None:
    unsupported = hooks._unsupported(lambda self: ["speculative method 'draft_model'", "dual batch overlap"])
    assert unsupported(engine()) == ["dual batch overlap"]
    other = SimpleNamespace(method="draft_model", model="another")
    assert len(unsupported(engine(speculative_config=other))) == 2


def test_drafts_take_no_rows_from_a_step() -> None:
    """vLLM keeps one for each request of another draft model."""

    def original(self: Any) -> None:
        self.scheduler_config.max_num_scheduled_tokens = 8192 - 64

    own = engine()
    hooks._scheduled_tokens(original)(own)
    assert own.scheduler_config.max_num_scheduled_tokens == 8192
    other = engine(speculative_config=SimpleNamespace(method="draft_model", model="another"))
    hooks._scheduled_tokens(original)(other)
    assert other.scheduler_config.max_num_scheduled_tokens == 8128


def test_promised_drafts_must_come() -> None:
    policy = PrecisionPolicy(prefill_format="fp8", draft="twin")  # type: ignore[arg-type] # a name, as users give it
    settings.check_drafts(policy, engine())
    with pytest.raises(ConfigError, match="runner V1"):
        settings.check_drafts(policy, engine(use_v2_model_runner=False))
    with pytest.raises(ConfigError, match="enable_lora"):
        settings.check_drafts(policy, engine(speculative_config=None, lora_config=object()))
    settings.check_drafts(policy.model_copy(update={"draft": "auto"}), engine(speculative_config=None))


def test_status_says_how_or_why_not() -> None:
    policy = PrecisionPolicy(prefill_format="fp8", draft="auto")  # type: ignore[arg-type] # a name, as users give it
    status = settings.draft_status(policy, engine(), {"1": {}}, 7)
    assert status["lookup_cycles"] == 7
    assert (status["tokens"], status["window"], status["reason"]) == (3, settings.WINDOW, "")
    lora = settings.draft_status(policy, engine(speculative_config=None, lora_config=object()), {}, 0)
    assert lora["tokens"] == 0
    assert "enable_lora" in lora["reason"]
    assert settings.draft_status(PrecisionPolicy(), engine(), {}, 0) == {}


def test_switched_policies_leave_drafts_out_or_make_them_as_before() -> None:
    policy = PrecisionPolicy(prefill_format="fp8", draft="auto")  # type: ignore[arg-type] # a name, as users give it
    drafting = engine(model_config=model("auto"))
    settings.check_same_drafts(policy, drafting)
    settings.check_same_drafts(policy.model_copy(update={"draft": None}), drafting)
    for field, value in (("draft_tokens", 2), ("draft_ngram", True), ("draft_window", 128)):
        with pytest.raises(ConfigError, match=rf"{field}={value} is not what this engine was started with"):
            settings.check_same_drafts(policy.model_copy(update={field: value}), drafting)
        settings.check_same_drafts(policy.model_copy(update={field: value}), engine(speculative_config=None))


def test_status_of_an_engine_that_was_not_set_up_for_drafts_says_so() -> None:
    policy = PrecisionPolicy(prefill_format="fp8", draft="auto")  # type: ignore[arg-type] # a name, as users give it
    status = settings.draft_status(policy, engine(speculative_config=None), {}, 0)
    assert status == {"tokens": 0, "reason": "an engine that was started without drafts"}


@pytest.mark.parametrize(("share", "pays"), [(0.62, True), (0.98, True), (1.02, False)])
def test_status_says_where_drafts_save_nothing(share: float, pays: bool) -> None:
    """A model so small that an exact step takes no longer: nothing is drafted, and the reason is there to be read."""
    policy = PrecisionPolicy(prefill_format="fp8", draft="twin")  # type: ignore[arg-type] # a name, as users give it
    status = settings.draft_status(policy, engine(), {}, 0, {1: share, 32: 1.31})
    words = "" if pays else "a draft's products take 1.02 to 1.31 times the exact ones here, and save nothing"
    assert status["reason"] == words
    own = replace(settings.draft_rule(policy), share=share)
    assert bool(own.drafts(1, 0, False, 1.0)) is pays, "as the schedule decides"


@pytest.mark.parametrize("settings_of_request", [{"min_p": 0.2}, {"logit_bias": {7: -100.0}}])
def test_requests_may_have_what_vllm_refuses_beside_its_own_drafters(settings_of_request: dict[str, Any]) -> None:
    """By vLLM's own check: runner V2 applies both to every verified row."""
    check = hooks._validate(SamplingParams._validate_spec_decode)
    params = SamplingParams(temperature=1.0, **settings_of_request)
    own = SimpleNamespace(method="draft_model", model="m", target_model_config=model("auto"))
    check(params, own)
    check(params, None)
    for other in (
        SimpleNamespace(method="draft_model", model="m", target_model_config=model(None)),
        SimpleNamespace(method="draft_model", model="another", target_model_config=model("auto")),
        SimpleNamespace(method="eagle3", model="m", target_model_config=model("auto")),
    ):
        with pytest.raises(Exception, match="min_p and logit_bias"):
            check(params, other)


def test_scheduler_is_given_the_policys_rule_and_its_counts_are_the_requests_own() -> None:
    def original(self: Any, vllm_config: Any) -> None:
        self.vllm_config, self.dynamic_sd_lookup = vllm_config, [0, 3]

    scheduler = SimpleNamespace()
    hooks._scheduler(original)(scheduler, engine())
    schedule = scheduler.dynamic_sd_lookup
    assert isinstance(schedule, DraftSchedule)
    seen: list[int] = []
    count = hooks._count(lambda self, stats, **numbers: seen.append(numbers["num_draft_tokens"]))
    count(scheduler, None, 3, 1, {"a-01234567": 1}, "a-01234567")
    assert seen == [3], "vLLM's own statistics go on"
    core = SimpleNamespace(scheduler=scheduler)
    assert hooks.mixquant_draft_counts(core, "a") == {"cycles": 1, "drafted": 2, "accepted": 1}
    assert schedule.take("a") == DraftCounts()
    schedule.fixed = 3
    assert schedule[1] == 3
    hooks.mixquant_set_drafts(core, False)
    assert schedule[1] == 0, "the engine's policy has no drafts any more"
    hooks.mixquant_set_drafts(core, True)
    assert schedule[1] == 3
    scheduler.dynamic_sd_lookup = None
    assert hooks.mixquant_draft_counts(core, "a") is None
    hooks.mixquant_set_drafts(core, False)  # an engine that drafts nothing
