"""Which mode a step runs in: the decisions, without a GPU."""

from __future__ import annotations

import pytest
import torch

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.plan import Mode, RequestRows
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.router import GraphSettings, Router
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.step import StepPlan
from mixquant_agents.quant.thresholds import Thresholds, crossing
from mixquant_agents.quant.vllm.context import current_step

HOPPER = DeviceInfo("cuda", "NVIDIA H200", (9, 0))
CPU = DeviceInfo("cpu", "cpu")
SETTINGS = GraphSettings(max_num_seqs=256, full_graphs=True)


def make_router(
    policy: PrecisionPolicy | str = "mixquant-fp8",
    pure: int = 100,
    mixed: int = 700,
    settings: GraphSettings = SETTINGS,
) -> Router:
    """A router for captured graphs whose thresholds were measured."""
    router = Router(resolve(PrecisionPolicy.of(policy), HOPPER), settings)
    router.prepare(torch.device("cpu"), lambda exact_rows: Thresholds(pure, mixed))
    return router


def fp8(**changes: object) -> PrecisionPolicy:
    return PrecisionPolicy(**{**PrecisionPolicy.of("mixquant-fp8").model_dump(), **changes})


def route(router: Router, *rows: tuple[int, int, int]) -> StepPlan:
    """``rows``: prompt length, computed, scheduled."""
    plan, step = router.route([RequestRows(f"r{k}", *row) for k, row in enumerate(rows)])
    assert (plan.mode, plan.rows, plan.requests) == (step.mode, step.rows, step.requests), "counts say what runs"
    return step


def mode(router: Router, *rows: tuple[int, int, int]) -> Mode:
    return route(router, *rows).mode


DECODE = (10, 20, 1)


def test_modes_by_rows_and_company() -> None:
    router = make_router()
    assert mode(router, (2000, 0, 100)) is Mode.EXACT  # up to the threshold
    assert mode(router, (2000, 0, 101)) is Mode.QUANTIZED
    assert mode(router, (600, 0, 600), DECODE) is Mode.EXACT  # exact rows among them: not worth it yet
    assert mode(router, (800, 0, 800), DECODE) is Mode.MIXED
    assert mode(router, *[DECODE] * 256) is Mode.EXACT


def test_one_row_each_is_left_to_the_full_graph() -> None:
    router = make_router(fp8(row_threshold=1))
    assert mode(router, (50, 3, 1), (50, 7, 1)) is Mode.EXACT
    assert mode(router, (50, 3, 2), (50, 7, 1)) is Mode.QUANTIZED


def test_few_rows_each_are_left_to_the_full_graph_of_speculative_decoding() -> None:
    router = make_router(fp8(row_threshold=1), settings=GraphSettings(256, True, decode_rows=4))
    assert mode(router, (50, 3, 2), (10, 20, 4), DECODE) is Mode.EXACT
    assert mode(router, (50, 3, 5), (10, 20, 4), DECODE) is Mode.MIXED


@pytest.mark.parametrize(
    ("writers", "drafts", "slot"), [(8, 0, 16), (64, 0, 64), (256, 0, 64), (8, 3, 32), (32, 3, 128), (64, 3, 128)]
)
def test_slot_of_exact_rows_holds_every_writers_drafts(writers: int, drafts: int, slot: int) -> None:
    """Whoever guessed the drafts: n-gram, a trained head, the twin."""
    settings = GraphSettings(writers, True, decode_rows=1 + drafts)
    assert make_router(settings=settings).capacity == slot


@pytest.mark.parametrize(("first", "last", "slot"), [(0, 1, 16), (16, 48, 64), (16, 112, 128), (16, 500, 128)])
def test_slot_of_exact_rows_holds_the_ends_of_one_prompt(first: int, last: int, slot: int) -> None:
    policy = fp8(exact_first_tokens=first, exact_last_tokens=last, exact_last_token=True)
    assert make_router(policy, settings=GraphSettings(1, True)).capacity == slot


def test_writers_with_drafts_stay_in_the_graph_of_a_mixed_step() -> None:
    """Eight writers of four rows are 32 exact rows; 16 places would hold four of them."""
    router = make_router(settings=GraphSettings(8, True, decode_rows=4))
    step = route(router, (2000, 0, 1000), *[(10, 20, 4)] * 7)
    assert step.exact_rows is router.exact_rows_buffer
    assert step.exact_rows is not None
    assert step.exact_rows.tolist() == [*range(1000, 1028), -1, -1, -1, -1]


def test_eager_engines_have_no_full_graph_to_replay() -> None:
    router = make_router(fp8(row_threshold=1), settings=GraphSettings(256, False))
    assert mode(router, (50, 3, 1), (50, 7, 1)) is Mode.QUANTIZED


def test_reproducible_never_runs_a_prefill_row_exact() -> None:
    router = make_router(fp8(reproducible=True))
    assert mode(router, (50, 3, 1)) is Mode.QUANTIZED
    assert mode(router, (50, 3, 1), DECODE) is Mode.MIXED
    assert mode(router, (50, 3, 9), *[DECODE] * 200) is Mode.MIXED


def test_uniform_quantizes_every_row() -> None:
    router = make_router("uniform-fp8")
    assert mode(router, DECODE) is Mode.QUANTIZED
    assert router.captured_modes(8, piecewise=False) == [steps.QUANTIZED]
    assert router.widest_step() is steps.QUANTIZED
    with pytest.raises(ConfigError, match="row_threshold=5"):
        make_router(fp8(decode_format="fp8", row_threshold=5))


def test_other_policies_keep_to_the_graphs_that_were_captured() -> None:
    state = Runtime(PrecisionPolicy.of("mixquant-fp8"), HOPPER, switchable=False, graphs=SETTINGS)
    router = state.router
    router.prepare(torch.device("cpu"), lambda exact_rows: Thresholds(100, 700))
    for policy in (PrecisionPolicy.of("uniform-fp8"), fp8(reproducible=True)):
        with pytest.raises(ConfigError, match=r"other graphs.*start another engine"):
            state.set_policy(policy)
    assert mode(router, (600, 0, 600), DECODE) is Mode.EXACT
    state.set_policy(fp8(row_threshold=0))
    assert mode(router, (600, 0, 600), DECODE) is Mode.MIXED  # not by what was measured at start
    assert mode(router, (600, 0, 9)) is Mode.QUANTIZED
    state.set_policy(fp8(exact_last_token=True))
    assert mode(router, (600, 0, 600), DECODE) is Mode.EXACT
    assert state.status()["row_threshold"] == 100


def test_buffer_names_the_exact_rows_and_nothing_else() -> None:
    router = make_router()
    assert router.exact_rows_buffer is not None
    step = route(router, (900, 0, 900), DECODE, DECODE)
    assert step.exact_rows is router.exact_rows_buffer
    assert router.exact_rows_buffer.tolist() == [900, 901] + [-1] * 62
    route(router, DECODE, (900, 0, 900))
    assert router.exact_rows_buffer.tolist() == [0] + [-1] * 63


def test_more_exact_rows_than_the_buffer_holds() -> None:
    router = make_router()
    step = route(router, (900, 0, 900), *[DECODE] * 100)
    assert step.exact_rows is not None
    assert step.exact_rows is not router.exact_rows_buffer
    assert step.exact_rows.tolist() == list(range(900, 1000))
    assert mode(router, (900, 0, 800), *[(10, 20, 4)] * 200) is Mode.EXACT  # half of all rows exact


def test_captured_modes_follow_the_thresholds() -> None:
    router = make_router()

    def captured(tokens: int, piecewise: bool) -> list[Mode]:
        return [step.mode for step in router.captured_modes(tokens, piecewise)]

    assert captured(64, piecewise=True) == [Mode.EXACT]
    assert captured(512, piecewise=True) == [Mode.EXACT, Mode.QUANTIZED]
    assert captured(1024, piecewise=True) == [Mode.EXACT, Mode.QUANTIZED, Mode.MIXED]
    assert captured(1024, piecewise=False) == [Mode.EXACT]


def test_warm_up_runs_as_a_step_of_prefill_rows_would() -> None:
    router = make_router()
    assert router.warmup_step(100).mode is Mode.EXACT
    assert router.warmup_step(101).mode is Mode.QUANTIZED
    assert router.warmup_step(None).mode is Mode.EXACT, "an encoder's"
    assert Router(resolve(PrecisionPolicy.of("exact"), CPU)).warmup_step(101).mode is Mode.EXACT
    assert Router(resolve(PrecisionPolicy.of("mixquant-nvfp4-plain"), CPU)).warmup_step(1).mode is Mode.QUANTIZED


def test_operation_on_fewer_rows_than_the_step_runs_exact() -> None:
    step = route(make_router(), (900, 0, 900))
    with steps.forced(step):
        assert current_step(900).mode is Mode.QUANTIZED
        assert current_step(1024).mode is Mode.QUANTIZED  # padded by a graph
        assert current_step(1).mode is Mode.EXACT


def test_eager_mixed_step_names_all_its_rows() -> None:
    router = Router(resolve(PrecisionPolicy.of("mixquant-nvfp4-plain"), CPU))
    step = route(router, (6, 0, 6), DECODE)
    assert step.exact_rows is not None
    assert step.quantized_rows is not None
    assert (step.quantized_rows.tolist(), step.exact_rows.tolist()) == ([0, 1, 2, 3, 4], [5, 6])


def test_crossing() -> None:
    exact = {16: 10.0, 64: 10.0, 128: 20.0, 256: 40.0}
    assert crossing(exact, {16: 9.0, 64: 9.0, 128: 12.0, 256: 20.0}) == 15
    assert crossing(exact, {16: 9.0, 64: 11.0, 128: 12.0, 256: 20.0}) == 127
    assert crossing(exact, {16: 12.0, 64: 12.0, 128: 25.0, 256: 50.0}) == 256
