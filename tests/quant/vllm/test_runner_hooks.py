"""The hooks around a step, on stand-ins for vLLM's runners."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import EngineStartError
from mixquant_agents.precision.plan import Mode
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.step import StepPlan
from mixquant_agents.quant.vllm import runner_hooks as hooks
from mixquant_agents.quant.vllm.context import CONTEXT_KEY
from mixquant_agents.quant.vllm.patching import wrap


def make_runtime() -> Runtime:
    return Runtime(PrecisionPolicy.of("mixquant-nvfp4-plain"), DeviceInfo("cpu", "cpu"), switchable=True)


def scheduled(rows: dict[str, int], **fields: Any) -> SimpleNamespace:
    defaults: dict[str, Any] = {
        "finished_req_ids": set(),
        "preempted_req_ids": None,
        "scheduled_new_reqs": [],
        "total_num_scheduled_tokens": sum(rows.values()),
        "scheduled_spec_decode_tokens": {},
        "scheduled_encoder_inputs": {},
        "num_scheduled_tokens": rows,
    }
    return SimpleNamespace(**{**defaults, **fields})


class RunnerV1:
    """Row order is the input batch's."""

    def __init__(self, state: Runtime | None) -> None:
        self.vllm_config = SimpleNamespace(quant_config=SimpleNamespace(runtime=state))
        self.input_batch = SimpleNamespace(
            num_reqs=2,
            req_ids=["a", "b", "stale"],
            num_prompt_tokens=np.array([6, 4, 99], dtype=np.int32),
            num_computed_tokens_cpu=np.array([2, 4, 99], dtype=np.int32),
        )

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> str:
        return "inputs"

    def execute_model(self, scheduler_output: Any) -> Any:
        self._prepare_inputs(scheduler_output, np.array([4, 1], dtype=np.int32))
        return context(self.vllm_config, 5)


class RunnerV2:
    """Row order is the returned batch's, which V2 sorts; states are by slot."""

    def __init__(self, state: Runtime | None) -> None:
        self.vllm_config = SimpleNamespace(quant_config=SimpleNamespace(runtime=state))
        self.req_states = SimpleNamespace(
            prompt_len=SimpleNamespace(np=np.array([99, 6, 4], dtype=np.int32)),
            num_computed_tokens_np=np.array([99, 2, 4], dtype=np.int32),
        )

    def prepare_inputs(self, scheduler_output: Any, *args: Any) -> Any:
        index = np.array([2, 1], dtype=np.int32)
        lengths = np.array([1, 4], dtype=np.int32)
        return SimpleNamespace(num_reqs=2, req_ids=["b", "a"], idx_mapping_np=index, num_scheduled_tokens=lengths)

    def execute_model(self, scheduler_output: Any, intermediate: Any = None, dummy_run: bool = False) -> Any:
        if not dummy_run:
            self.prepare_inputs(scheduler_output, "batch description")
        return context(self.vllm_config, 8)


def context(vllm_config: Any, tokens: int) -> Any:
    made = hooks._forward_context(lambda **_: {"theirs": 1})(vllm_config=vllm_config, num_tokens=tokens)
    assert made["theirs"] == 1
    return made.get(CONTEXT_KEY)


def hooked(runner: type) -> type:
    """A fresh subclass with the hooks of its generation, installed twice as by two engines."""
    cls = type("GPUModelRunner", (runner,), {})
    name, make = (
        ("_prepare_inputs", hooks._prepare_v1)
        if issubclass(runner, RunnerV1)
        else ("prepare_inputs", hooks._prepare_v2)
    )
    for _ in range(2):
        wrap(cls, name, make)
        wrap(cls, "execute_model", hooks._execute)
    return cls


@pytest.mark.parametrize(("runner", "quantized"), [(RunnerV1, [0, 1, 2]), (RunnerV2, [1, 2, 3])])
def test_runner_generations_plan_in_their_own_row_order(runner: type, quantized: list[int]) -> None:
    state = make_runtime()
    step = hooked(runner)(state).execute_model(scheduled({"a": 4, "b": 1}))
    assert isinstance(step, StepPlan)
    assert step.quantized_rows is not None
    assert step.quantized_rows.tolist() == quantized
    counts = state.counter.read(["a", "b"])
    assert (counts["a"].quantized, counts["a"].exact) == (3, 1), "counted once, although hooked twice"
    assert (counts["b"].quantized, counts["b"].exact) == (0, 0)


@pytest.mark.parametrize("runner", [RunnerV1, RunnerV2])
def test_engines_with_another_method_are_left_alone(runner: type) -> None:
    assert hooked(runner)(None).execute_model(scheduled({"a": 4, "b": 1})) is None


def test_dummy_runs_are_decided_by_their_tokens() -> None:
    state = make_runtime()
    for step in (
        hooked(RunnerV2)(state).execute_model(scheduled({"a": 4, "b": 1}), dummy_run=True),
        hooked(RunnerV2)(state).execute_model(scheduled({"a": 4, "b": 1}), None, True),
    ):
        assert (step.mode, step.rows) == (Mode.QUANTIZED, 8)


def test_finished_and_preempted_requests_reach_the_counter() -> None:
    state = make_runtime()
    runner = hooked(RunnerV1)(state)
    runner.execute_model(scheduled({"a": 4, "b": 1}))
    runner.execute_model(scheduled({"a": 4, "b": 1}, preempted_req_ids={"a"}))
    counts = state.counter.read(["a"])["a"]
    assert (counts.quantized, counts.exact, counts.recomputed, counts.preemptions) == (3, 1, 4, 1)
    runner.execute_model(scheduled({"a": 4, "b": 1}, finished_req_ids={"b"}))
    assert "b" in state.counter.read(["b"])


def test_step_without_a_plan_fails_loudly() -> None:
    class Moved(RunnerV1):
        def execute_model(self, scheduler_output: Any) -> Any:
            return None  # prepares its inputs somewhere else

    with pytest.raises(EngineStartError, match="without a row plan"):
        hooked(Moved)(make_runtime()).execute_model(scheduled({"a": 4}))


def test_changed_input_batch_fails_loudly() -> None:
    runner = hooked(RunnerV1)(make_runtime())
    del runner.input_batch.num_prompt_tokens
    with pytest.raises(EngineStartError, match=r"InputBatch of runner V1.*num_prompt_tokens"):
        runner.execute_model(scheduled({"a": 4, "b": 1}))


def test_reloaded_weights_renew_what_a_drafter_made_of_them() -> None:
    renewed: list[str] = []
    reload = hooks._reload(lambda self, path: renewed.append(path))
    drafter = SimpleNamespace(renew=lambda: renewed.append("renewed"))
    reload(SimpleNamespace(speculator=drafter), "new")
    reload(SimpleNamespace(speculator=None), "newer")
    assert renewed == ["new", "renewed", "newer"]
