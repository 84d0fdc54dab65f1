"""NVIDIA's tables through the adapter: they load, and say what is known of these GPUs."""

import pytest

from mixquant_agents.errors import ConfigError
from mixquant_agents.planning.aiconfigurator import step_times
from mixquant_agents.planning.memory import engine_memory

MODEL = "Qwen/Qwen3-8B"


@pytest.mark.slow
def test_tables_are_near_our_own_measurements() -> None:
    """``docs/results/prefill-h100.json``: exact 223.6 ms cold 8192, 6.58 and 7.12 ms a step of 1 and 32; host time
    and element-wise work are missing in the tables."""
    exact, fp8 = (step_times(MODEL, "h100_sxm", prefill=name) for name in ("exact", "fp8"))
    assert exact.seconds([(8192, 0)], []) == pytest.approx(0.2236, rel=0.15)
    assert fp8.seconds([(8192, 0)], []) == pytest.approx(0.1478, rel=0.15)
    assert exact.seconds([], [128]) == pytest.approx(0.00658, rel=0.1)
    assert exact.decode == fp8.decode, "writing is exact in both"
    assert exact.seconds([(1024, 8192)], []) > exact.seconds([(1024, 0)], [])
    fitted = step_times(MODEL, "h100_sxm", scale=1.1, constant=0.002)
    assert fitted.seconds([(8192, 0)], []) == pytest.approx(1.1 * exact.seconds([(8192, 0)], []) + 0.002)
    with pytest.raises(ConfigError, match="nvfp4"):
        step_times(MODEL, "a100_sxm", prefill="nvfp4")


def test_memory_that_is_left_holds_what_vllm_would_hold() -> None:
    exact, mixed = (engine_memory(MODEL, "h100_sxm", name, "exact") for name in ("exact", "fp8"))
    assert exact.kv_bytes_per_token == 36 * 8 * 128 * 2 * 2
    assert exact.kv_tokens == pytest.approx(380_000, rel=0.1)
    assert (exact.kv_tokens - mixed.kv_tokens) * exact.kv_bytes_per_token == pytest.approx(6.95e9, rel=0.01), "the twin"
    with pytest.raises(ConfigError, match="h100_sxm"):
        engine_memory(MODEL, "abacus", "exact", "exact")
    with pytest.raises(ConfigError, match="configuration of 'nobody/none'"):
        engine_memory("nobody/none", "h100_sxm", "exact", "exact")
    with pytest.raises(ConfigError, match="no room"):
        engine_memory(MODEL, "l4", "fp8", "exact")


MIXTURE = "Qwen/Qwen3-30B-A3B"


def test_experts_take_memory() -> None:
    """Qwen3-30B-A3B has 30.5 billion weights, 57 GiB; of 80 GiB about 10 are left."""
    exact = engine_memory(MIXTURE, "h100_sxm", "exact", "exact")
    assert exact.kv_tokens == pytest.approx(110_000, rel=0.05)
    assert exact.expert_layers is None
    assert engine_memory(MIXTURE, "h100_sxm", "fp8", "fp8").expert_layers is None, "one copy of the weights"


def test_as_many_layers_of_experts_have_twins_as_fit() -> None:
    partly = engine_memory(MIXTURE, "h100_sxm", "fp8", "exact")
    assert partly.expert_layers is not None
    assert 0 < partly.expert_layers[0] < partly.expert_layers[1] == 48
    assert partly.kv_tokens >= 8192, "one request's"
    longer = engine_memory(MIXTURE, "h100_sxm", "fp8", "exact", longest=32_768)
    assert longer.twin_share < partly.twin_share
    assert longer.kv_tokens > partly.kv_tokens >= 8192
    assert longer == engine_memory(MIXTURE, "h100_sxm", "fp8", "exact", longest=32_768, expert_twins_gib=50)
    none = engine_memory(MIXTURE, "h100_sxm", "fp8", "exact", expert_twins_gib=0)
    assert none.twin_share == 0
    assert engine_memory(MIXTURE, "h200_sxm", "fp8", "exact").twin_share == 1
    assert engine_memory(MIXTURE, "h100_sxm", "fp8", "exact", gpus=2).twin_share == 1


@pytest.mark.slow
def test_gain_is_in_proportion_to_the_layers_with_twins() -> None:
    """An H200's figures of exact steps, ``docs/results/prefill-moe.json``: 40.9 ms cold 2048, 8.77 a step of 8."""
    exact = step_times(MIXTURE, "h200_sxm")
    assert exact.seconds([(2048, 0)], []) == pytest.approx(0.0409, rel=0.15)
    assert exact.seconds([], [128] * 8) == pytest.approx(0.00877, rel=0.15)
    none, half, every = (step_times(MIXTURE, "h200_sxm", prefill="fp8", twin_share=share) for share in (0, 0.5, 1))
    times = [each.seconds([(2048, 0)], []) for each in (none, half, every)]
    assert times[1] == pytest.approx((times[0] + times[2]) / 2)
    assert times[2] < times[0] <= 1.01 * exact.seconds([(2048, 0)], [])
    assert every.decode == exact.decode


def test_format_without_tables_is_refused() -> None:
    with pytest.raises(ConfigError, match="int8"):
        step_times(MODEL, "h100_sxm", prefill="int8")
