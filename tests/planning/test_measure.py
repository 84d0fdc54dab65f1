"""The same sessions on an engine: it is asked what the simulation assumes, and results can be predicted again."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from mixquant_agents.cli.app import run
from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest
from mixquant_agents.engine.vllm.prompts import common_length
from mixquant_agents.planning.measure import Probes, _around, _Turn, calibrate, run_workload
from mixquant_agents.planning.simulate import EngineLimits, Outcome, TurnResult, simulate
from mixquant_agents.planning.validate import COMPARED, compare, validate
from mixquant_agents.planning.workload import Workload
from mixquant_agents.records import TurnCounts, TurnTimes

WORK = Workload(
    turns=3, shared_tokens=64, own_tokens=16, tool_tokens=32, answer_tokens=4, spread=0.3, max_context=1000,
    summary_tokens=16, tool_p86_seconds=0.001, tool_p95_seconds=0.001, ramp_seconds=0.0,
)  # fmt: skip
PROBES = Probes(rows=(8, 16, 32), context=64, writers=(1, 2), together=2, tokens=6, repeats=1, beside_writer=(16,))
LIMITS = EngineLimits(kv_tokens=10_000)


class Engines(Engine):
    """A millisecond a token, and a tenth of one a new prompt row, in which writers wait unless prompts are read
    ``apart`` from them, one after the other; keeps the prompts."""

    def __init__(self, front_end: float = 0.0, *, apart: bool = False, prefix_cache: bool = True) -> None:
        self.prompts: list[list[int]] = []
        self._front_end, self._prefix_cache, self._step = front_end, prefix_cache, asyncio.Lock()
        self._reading = asyncio.Lock() if apart else self._step

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(engine="double", model="m")

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        prompt = list(request.prompt_token_ids or ())
        known_prompts = self.prompts if self._prefix_cache else []
        cached = max((common_length(prompt, known) for known in known_prompts), default=0)
        self.prompts.append(prompt)
        await asyncio.sleep(self._front_end)
        async with self._reading:
            await asyncio.sleep(1e-4 * (len(prompt) - cached))
        for token in range(request.sampling.max_tokens or 0):
            async with self._step:
                await asyncio.sleep(1e-3)
            yield Delta(token_ids=(token,))
        yield Delta(finish_reason="length", counts=TurnCounts(cached_tokens=7))


async def test_engine_is_asked_what_the_simulation_assumes() -> None:
    engine = Engines()
    real = await run_workload(engine, WORK, agents=3, seconds=30, turns_each=3)
    steps = (await calibrate(engine, PROBES, limits=LIMITS)).steps("test")
    plan = simulate(WORK, steps, LIMITS, agents=3, seconds=30, turns_each=3)
    for agent in range(3):
        asked, planned = (
            [(turn.prompt, turn.answer, turn.conversation) for turn in outcome.turns if turn.agent == agent]
            for outcome in (real, plan)
        )
        assert asked == planned
    assert all(len(turn.stamps) == turn.answer and turn.cached == 7 for turn in real.turns)
    prompts = engine.prompts[:9]
    assert sorted(map(len, prompts)) == sorted(turn.prompt for turn in real.turns)
    first = min(prompts, key=len)
    assert all(prompt[:64] == first[:64] for prompt in prompts), "the shared beginning"
    longest = max(prompts, key=len)
    assert sum(longest[: len(prompt)] == prompt for prompt in prompts) == 3, "a conversation repeats itself"


async def test_calibration_brings_rising_curves() -> None:
    calibration = await calibrate(Engines(), PROBES, limits=LIMITS)
    assert [rows for rows, _ in calibration.warm] == [16, 32]
    assert calibration.shared is not None
    assert calibration.shared.count == 2
    assert [writers for writers, _ in calibration.beside] == [1, 2]
    steps = calibration.steps("test")
    assert [rows for rows, _ in steps.prefill] == [8, 16, 32]
    assert [seconds for _, seconds in steps.prefill] == sorted(seconds for _, seconds in steps.prefill)
    assert steps.prefill[-1][1] > 0.003
    assert steps.decode[0][1] > 0.0009


@pytest.mark.parametrize("prefix_cache", [True, False])
async def test_writers_whose_contexts_take_long_to_read(*, prefix_cache: bool) -> None:
    """Read one after the other, each writer has ended before the next begins: an end before the beginning made a step
    of less than no time, and the calibration failed."""
    probes = Probes(rows=(8, 16), context=2000, writers=(1, 2), tokens=4, repeats=1, beside_writer=(16,))
    calibration = await calibrate(Engines(apart=True, prefix_cache=prefix_cache), probes, limits=LIMITS)
    assert (calibration.own is not None) is prefix_cache, "no figure where they never write at once"
    assert (calibration.shared is not None) is prefix_cache
    assert calibration.steps("test").writer_context >= 0


class BusyFrontEnd(Engine):
    """Steps of 5 ms that nothing delays, and a front end that takes 20 ms for a turn's first token, while the others'
    wait. It stamps when it began a prompt and made its first token."""

    STEP, FIRST_TEXT = 0.005, 0.02

    def __init__(self) -> None:
        self._free = 0.0

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(engine="double", model="m")

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        begun = time.monotonic()
        tokens = request.sampling.max_tokens or 0
        came = 0.0
        for token in range(tokens):
            made = begun + (token + 1) * self.STEP
            if token == 0:
                self._free = max(self._free, made) + self.FIRST_TEXT
            came = max(made, self._free)
            await asyncio.sleep(max(0.0, came - time.monotonic()))
            if token == 0:
                behind = came - made
            yield Delta(token_ids=(token,))
        times = TurnTimes(
            queue_seconds=0.0, prefill_seconds=self.STEP, delivery_seconds=behind, ttft_seconds=self.STEP + behind
        )
        yield Delta(finish_reason="length", times=times)


async def test_what_the_front_end_owes_is_not_taken_for_short_steps() -> None:
    """Eight first texts keep it busy for 160 ms, 32 steps: what was made meanwhile came within an instant, and a step
    seemed to take a fraction of its time. On an H200 it seemed so for writers behind long prompts."""
    probes = Probes(rows=(8, 16), context=64, writers=(1, 8), tokens=24, repeats=1, beside_writer=(16,))
    calibration = await calibrate(BusyFrontEnd(), probes, limits=LIMITS)
    assert calibration.own is not None
    assert calibration.own.seconds == pytest.approx(BusyFrontEnd.STEP, rel=0.01)
    assert dict(calibration.decode)[8] == pytest.approx(BusyFrontEnd.STEP, rel=0.01)
    assert calibration.own.context > 64 + probes.tokens


async def test_stamps_of_the_engine_show_what_is_outside_of_its_steps() -> None:
    calibration = await calibrate(BusyFrontEnd(), PROBES, limits=LIMITS)
    tokens = [8, 16, 32, 64 + 16, 64 + 32]
    assert [at for at, _ in calibration.before] == [at for at, _ in calibration.behind] == tokens
    assert all(seconds == pytest.approx(BusyFrontEnd.FIRST_TEXT, rel=0.01) for _, seconds in calibration.behind)
    assert (await calibrate(Engines(), PROBES, limits=LIMITS)).before == (), "an engine that does not say"


def test_token_that_is_handed_on_late_makes_no_step_shorter() -> None:
    """Steps of 5 ms, and one of 20 that reads a prompt: the token before is 8 ms late, for the engine prepared it."""
    stamps = [0.0, 0.005, 0.010, 0.023, 0.035, 0.040, 0.045]
    read = _Turn(asked=0.008, stamps=[0.035], tokens=[1], cached=None, times=None)
    writer = _Turn(asked=-1.0, stamps=stamps, tokens=[1] * 7, cached=None, times=None)
    assert _around(writer, read) == pytest.approx((0.013, 0.020))
    early = _Turn(asked=-1.0, stamps=stamps[3:], tokens=[1] * 4, cached=None, times=None)
    assert _around(early, read) is None, "nobody saw the token before"


async def test_no_more_writers_are_tried_than_run_at_once() -> None:
    probes = Probes(rows=(8, 16), context=0, writers=(1, 2, 4), tokens=4, repeats=1, beside_writer=(16,))
    calibration = await calibrate(Engines(), probes, limits=EngineLimits(kv_tokens=10_000, max_num_seqs=1))
    assert [count for count, _ in calibration.decode] == [1]
    assert calibration.steps("test").seconds([], [50, 50]) > 0


async def test_time_in_which_no_writer_waits_is_no_part_of_a_step() -> None:
    probes = Probes(rows=(50, 100, 400), context=0, writers=(1, 2), tokens=90, repeats=3, beside_writer=(400,))
    slow = (await calibrate(Engines(front_end=0.03), probes)).steps("test")
    assert slow.latency == pytest.approx(0.03, rel=0.1), "a writer of 16 tokens has ended before the prompt is there"
    assert slow.prefill[-1][1] == pytest.approx(0.041, rel=0.1)


class CountsAtTheEnd(Engines):
    """Its last token waits for the turn's counts, 50 ms."""

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        left = request.sampling.max_tokens or 0
        async for delta in super().stream(request):
            left -= len(delta.token_ids)
            if left == 0 and delta.token_ids:
                await asyncio.sleep(0.05)
            yield delta


async def test_counts_of_a_turn_are_no_part_of_its_first_token() -> None:
    calibration = await calibrate(CountsAtTheEnd(), PROBES, limits=LIMITS)
    assert min(seconds for _, seconds in calibration.cold) < 0.04
    assert calibration.held < 0.04


async def test_run_that_ends_counts_complete_turns_alone() -> None:
    real = await run_workload(Engines(), WORK, agents=2, seconds=0.1)
    assert all(not turn.stamps or len(turn.stamps) == turn.answer for turn in real.turns)
    half = TurnResult(0, 0, 0.0, 10, 5, stamps=[0.1, 0.2])
    whole = TurnResult(0, 0, 0.0, 10, 2, stamps=[0.1, 0.2])
    assert Outcome((half, whole), 0.0, 1.0).summary()["turns"] == 1


def test_errors_are_relative_to_what_was_measured() -> None:
    turn = TurnResult(0, 0, 0.0, 10, 2, stamps=[0.1, 0.2])
    compared = compare(
        Outcome((turn,), 0.0, 1.0), {**dict.fromkeys(COMPARED), "ttft_p50_ms": 80.0, "tokens_per_s": 4.0}
    )
    assert compared["error"]["ttft_p50_ms"] == pytest.approx(0.25)
    assert compared["error"]["tokens_per_s"] == pytest.approx(-0.5)
    assert compared["error"]["itl_p50_ms"] is None
    assert compared["largest_error"] == pytest.approx(0.5)


async def test_result_is_predicted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[int] = []
    made = await validate(
        Engines(), WORK, LIMITS, agents=[1, 2], seconds=0.4, warm_up=0.05, probes=PROBES, source="test",
        keep=lambda result: kept.append(len(result["runs"])),
    )  # fmt: skip
    assert kept == [1, 2]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"policies": {"exact": made}}))
    assert run(["bench", "plan", "--again", str(path), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["policies"]["exact"]
    assert again == json.loads(json.dumps(made))
    path.write_text("{}")
    assert run(["bench", "plan", "--again", str(path)]) == 2


@pytest.mark.parametrize("words", [["--workload", "mars"], ["--agents", "x"], ["--seconds", "3", "--warm-up", "3"]])
def test_wrong_command_is_refused(words: list[str]) -> None:
    assert run(["bench", "plan", *words]) == 2
