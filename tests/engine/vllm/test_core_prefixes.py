"""The owner's side of read-ahead, held prefixes and sleep, on a stand-in for vLLM that has a prefix cache."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from mixquant_agents.config import EngineConfig, NumberFormat, PrecisionPolicy
from mixquant_agents.engine.base import EngineRequest, Keep, Sampling
from mixquant_agents.engine.parsing import TokenDelta, parsed
from mixquant_agents.engine.scripted.prompt import BLOCK_TOKENS, PrefixCache
from mixquant_agents.engine.vllm.core import RunningEngine
from mixquant_agents.engine.vllm.history import TurnHistory
from mixquant_agents.engine.vllm.kept import Pieces
from mixquant_agents.engine.vllm.startup import StartControl
from mixquant_agents.errors import ConfigError
from mixquant_agents.records import TurnCounts
from tests.engine.vllm.byte_tokenizer import byte_tokenizer
from tests.engine.vllm.history.threads import DROPS_THOUGHTS, MARKERS, TOOL, prompts_of

T = TypeVar("T")
BLOCKS = 100
numbers = itertools.count()


class CachingLlm:
    """Answers with one token; forgets the least recently used blocks, as vLLM does."""

    def __init__(self) -> None:
        self.cache = PrefixCache(BLOCKS)
        self.asked: list[tuple[str, int]] = []
        self.slept: list[int] = []
        self.errored = False
        self.unfinished = 0
        self.observability_config = SimpleNamespace(otlp_traces_endpoint=None)
        self.model_config = SimpleNamespace(get_diff_sampling_param=dict, get_vocab_size=lambda: 300)
        cache = SimpleNamespace(block_size=BLOCK_TOKENS, num_gpu_blocks=BLOCKS)
        self.vllm_config = SimpleNamespace(cache_config=cache)
        self.output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: self.unfinished)

    async def generate(self, prompt: Any, params: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        ids, salt = prompt["prompt_token_ids"], prompt["cache_salt"]
        self.asked.append((request_id, options["priority"]))
        cached = self.cache.matched(ids, salt)
        self.cache.add([*ids, 7], salt)
        await asyncio.sleep(0)
        done = SimpleNamespace(text="7", token_ids=[7], logprobs=None, finish_reason="length", stop_reason=None)
        yield SimpleNamespace(outputs=[done], finished=True, metrics=None, num_cached_tokens=cached)

    def shutdown(self, timeout: float) -> None: ...

    async def abort(self, request_id: str) -> None: ...

    async def sleep(self, level: int) -> None:
        self.slept.append(level)
        self.cache = PrefixCache(BLOCKS)

    async def wake_up(self) -> None:
        self.slept.append(0)


class StandIn(RunningEngine):
    """All of the owner's side, over :class:`CachingLlm`."""

    async def _start(self, control: StartControl) -> None:
        self.llm, self.prompts = CachingLlm(), prompts_of(byte_tokenizer(DROPS_THOUGHTS, MARKERS))
        self.tool_parser, self.reasoning_parser = "hermes", "qwen3"


@pytest.fixture
def engine() -> Iterator[StandIn]:
    made = StandIn(EngineConfig(model="m", liveness_seconds=None))
    yield made
    made.close()


async def on_its_loop(engine: StandIn, work: Coroutine[Any, Any, T]) -> T:
    return await asyncio.wrap_future(engine.submit(work))


def request(*messages: dict[str, Any], **fields: Any) -> EngineRequest:
    sampling = Sampling(temperature=0, max_tokens=1)
    return EngineRequest(request_id=f"r{next(numbers)}", messages=messages, sampling=sampling, tools=[TOOL], **fields)


async def turn(engine: StandIn, asked: EngineRequest, history: TurnHistory | None = None) -> TokenDelta:
    posted: list[Any] = []

    async def run() -> None:
        await engine.turn(asked, 0.0, posted.append, history or TurnHistory(engine.prompts.answers))
        await asyncio.gather(*engine._background)

    await on_its_loop(engine, run())
    if isinstance(posted[-1], BaseException):
        raise posted[-1]
    return posted[-1]  # type: ignore[no-any-return]


async def counts_of(engine: StandIn, asked: EngineRequest) -> TurnCounts:
    """What a turn counts at its end."""
    counts = (await turn(engine, asked)).counts
    assert counts is not None
    return counts


async def hold_behind_turn(engine: StandIn, asked: EngineRequest) -> None:
    """Run a turn, and hold its prefix as for an answer that calls tools."""
    history = TurnHistory(engine.prompts.answers)
    await turn(engine, asked, history)
    engine.hold(asked, history)
    await on_its_loop(engine, asyncio.sleep(0))


SYSTEM = {"role": "system", "content": "You know lakes."}
USER = {"role": "user", "content": "How deep is Inari?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "depth", "arguments": '{"lake": "Inari"}'}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = " ".join(f"{number} m at buoy {number}" for number in range(40))


async def test_everything_certain_is_read_ahead(engine: StandIn) -> None:
    read = await on_its_loop(engine, engine.prefetch(request(SYSTEM, priority=9)))
    assert engine.llm.asked[-1][1] == 9
    told = await counts_of(engine, request(SYSTEM, USER))
    assert told.cached_tokens == told.warmed_tokens == read > 200

    more = await on_its_loop(engine, engine.prefetch(request(SYSTEM, USER, CALLED)))
    assert more > read  # up to where the result will stand
    half = {"role": "tool", "tool_call_id": "c1", "content": RESULT[:300]}
    grown = await on_its_loop(engine, engine.prefetch(request(SYSTEM, USER, CALLED, half), growing=True))
    whole = {"role": "tool", "tool_call_id": "c1", "content": RESULT}
    told = await counts_of(engine, request(SYSTEM, USER, CALLED, whole))
    assert told.cached_tokens == grown > more + 200
    assert told.warmed_tokens is not None
    assert told.warmed_tokens > 200
    assert (await on_its_loop(engine, engine.stats())).warmed_tokens >= read


async def test_growing_result_is_read_in_large_pieces_while_turns_run(engine: StandIn) -> None:
    engine.pieces = Pieces(tokens=10 * BLOCK_TOKENS, share=0.0)

    async def read(characters: int) -> int:
        half = {"role": "tool", "tool_call_id": "c1", "content": (RESULT * 2)[:characters]}
        return await on_its_loop(engine, engine.prefetch(request(SYSTEM, USER, CALLED, half), growing=True))

    other = await on_its_loop(engine, _task_of_a_turn(engine))
    first = await read(100)
    assert (await read(200), len(engine.llm.asked)) == (first, 1), "a small piece waits for more"
    second = await read(400)
    assert (second > first + 10 * BLOCK_TOKENS - BLOCK_TOKENS, len(engine.llm.asked)) == (True, 2)
    engine.pieces = Pieces(tokens=1, share=1.0)
    assert (await read(600), len(engine.llm.asked)) == (second, 2), "nor is it large beside what was read"
    del engine._turns[other]
    assert await read(600) > second, "nobody else is slowed down"


async def test_what_turns_read_and_wrote_is_no_piece(engine: StandIn) -> None:
    engine.pieces = Pieces(tokens=10 * BLOCK_TOKENS)
    history = TurnHistory(engine.prompts.answers)
    asked = request(SYSTEM, USER)
    history.feed(parsed(await turn(engine, asked, history), engine.parser(asked)))
    await on_its_loop(engine, _task_of_a_turn(engine))
    growing = request(SYSTEM, USER, history._answer(), {"role": "user", "content": "And"})
    await on_its_loop(engine, engine.prefetch(growing, growing=True))
    assert len(engine.llm.asked) == 1, "the turn's own"


async def _task_of_a_turn(engine: StandIn) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(0))
    engine._turns[task] = print
    return task


async def test_whole_prompt_is_certain_behind_a_question(engine: StandIn) -> None:
    read = await on_its_loop(engine, engine.prefetch(request(SYSTEM, USER)))
    told = await counts_of(engine, request(SYSTEM, USER))
    assert told.prompt_tokens is not None
    assert told.prompt_tokens - told.prompt_tokens % BLOCK_TOKENS == read


@pytest.mark.parametrize("held", [True, False])
async def test_held_prefix_is_asked_for_before_it_is_forgotten(engine: StandIn, held: bool) -> None:
    await hold_behind_turn(engine, request(SYSTEM, USER, thread_id="T", keep=Keep(seconds=60) if held else None))
    assert (await on_its_loop(engine, engine.stats())).kept_threads == held
    for number in range(8):  # each puts about 30 blocks of its own into a cache of 100
        await turn(engine, request({"role": "user", "content": f"{number} " + "other " * 60}))
    told = await counts_of(engine, request(SYSTEM, USER, CALLED, {"role": "tool", "content": "92 m"}, thread_id="T"))
    assert told.cached_tokens is not None
    if held:
        assert any(name.startswith("keep-") for name, _ in engine.llm.asked)
        assert told.kept_tokens == told.cached_tokens > 200
        assert told.evicted_tokens == 0
        assert (await on_its_loop(engine, engine.stats())).kept_hits == 1
    else:
        assert told.cached_tokens == told.kept_tokens == 0


async def test_released_thread_is_held_no_more(engine: StandIn) -> None:
    await hold_behind_turn(engine, request(USER, thread_id="T", keep=Keep(seconds=60, tokens=50)))
    assert engine._kept.tokens == 50
    await on_its_loop(engine, engine.release("T"))
    assert (await on_its_loop(engine, engine.stats())).kept_threads == 0


async def test_sleeping_engine_is_woken_by_the_next_turn(engine: StandIn) -> None:
    await turn(engine, request(SYSTEM, USER))
    engine.llm.unfinished = 1
    with pytest.raises(ConfigError, match="1 turns are running"):
        await on_its_loop(engine, engine.sleep())
    engine.llm.unfinished = 0
    report = await on_its_loop(engine, engine.sleep())
    assert (report.way, engine.llm.slept, engine.asleep) == ("host", [1], True)
    await on_its_loop(engine, engine.sleep())  # once is enough
    told = await counts_of(engine, request(SYSTEM, USER))
    assert told.cached_tokens == 0
    assert (engine.llm.slept, engine.asleep) == ([1, 0], False)
    await on_its_loop(engine, engine.sleep())
    assert await on_its_loop(engine, engine.prefetch(request(SYSTEM))) > 0
    assert engine.llm.slept == [1, 0, 1, 0]


async def test_history_that_does_not_fit_is_left_to_the_template(engine: StandIn) -> None:
    """The template drops the thoughts, which alone fill the window."""
    history = TurnHistory(engine.prompts.answers)
    await turn(engine, request(USER), history)
    thought = f"<think>\n{'hm ' * 200}\n</think>\n\nDeep."
    tokens = tuple(engine.renderer.tokenizer.encode(thought, add_special_tokens=False))
    parser = engine.parser(request(USER))
    history = TurnHistory(engine.prompts.answers)
    history.prompt = await on_its_loop(engine, engine.rendered(request(USER)))
    out = parsed(TokenDelta(text=thought, token_ids=tokens, finish_reason="length"), parser)
    history.feed(out)
    answer = {"role": "assistant", "content": out.content, "reasoning_content": out.reasoning}
    asked = request(USER, {k: v for k, v in answer.items() if v}, {"role": "user", "content": "Sure?"})
    fits = await on_its_loop(engine, engine.rendered(asked))
    assert fits.verbatim_tokens > 600
    engine.renderer.max_model_len = len(fits.token_ids) - 10
    prompt = await on_its_loop(engine, engine.rendered(asked))
    assert prompt.verbatim_tokens == 0
    assert prompt.change == "the conversation as it was written does not fit the context window"
    assert prompt.key == fits.key
    assert len(prompt.token_ids) < len(fits.token_ids) - 500


async def test_turn_that_comes_while_the_engine_falls_asleep_wakes_it(engine: StandIn) -> None:
    """vLLM takes requests while it sleeps, and does nothing for them."""
    falling, asleep = asyncio.Event(), asyncio.Event()
    order: list[str] = []
    sleep_of, generate_of, wake_of = engine.llm.sleep, engine.llm.generate, engine.llm.wake_up

    async def slow_sleep(level: int) -> None:
        falling.set()
        await asleep.wait()
        await sleep_of(level)
        order.append("asleep")

    async def wake_up() -> None:
        await wake_of()
        order.append("awake")

    async def generate(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        order.append("generate")
        async for output in generate_of(*arguments, **options):
            yield output

    engine.llm.sleep, engine.llm.generate, engine.llm.wake_up = slow_sleep, generate, wake_up

    async def run() -> None:
        sleeping = asyncio.create_task(engine.sleep())
        await falling.wait()
        coming = [
            asyncio.create_task(
                engine.turn(request(USER), 0.0, list[Any]().append, TurnHistory(engine.prompts.answers))
            ),
            asyncio.create_task(engine.prefetch(request(SYSTEM))),
        ]
        await asyncio.wait(coming, timeout=0.05)
        asleep.set()
        await asyncio.gather(sleeping, *coming)

    await on_its_loop(engine, run())
    assert order == ["asleep", "awake", "generate", "generate"]


@pytest.mark.parametrize("change", ["sleep", "set_policy"])
async def test_turn_that_is_being_rendered_is_running(engine: StandIn, change: str) -> None:
    """It is no request of vLLM's yet, but its keys, and the engine that it will reach, are settled."""
    engine._rows = cast("Any", SimpleNamespace())
    policy = PrecisionPolicy.of("mixquant-int8")
    rendering, go_on = asyncio.Event(), asyncio.Event()

    async def rendered(_: EngineRequest) -> Any:
        rendering.set()
        await go_on.wait()
        raise ConfigError("enough")

    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "rendered", rendered)
            history = TurnHistory(engine.prompts.answers)
            running = asyncio.create_task(engine.turn(request(USER), 0.0, list[Any]().append, history))
            await rendering.wait()
            try:
                with pytest.raises(ConfigError, match="1 turns are running"):
                    await (engine.sleep() if change == "sleep" else engine.set_policy(policy))
            finally:
                go_on.set()
                await running

    await on_its_loop(engine, run())
    assert engine.llm.slept == []
    await on_its_loop(engine, engine.sleep())  # its end is counted, too
    assert engine.asleep


async def test_scheduler_is_told_of_policies_with_drafts_and_without(engine: StandIn) -> None:
    """It decides on drafts, and no worker asks it."""
    asked: list[tuple[str, bool]] = []

    async def answer(name: str, args: Any) -> list[dict[str, Any]]:
        return [{"prefill_format": "fp8"}]

    async def utility(name: str, allowed: bool) -> None:
        asked.append((name, allowed))

    engine._rows, engine.llm.collective_rpc = cast("Any", SimpleNamespace()), answer
    engine.llm.engine_core = cast("Any", SimpleNamespace(call_utility_async=utility))
    for draft in ("auto", "auto", None, None):
        await on_its_loop(engine, engine.set_policy(PrecisionPolicy(prefill_format=NumberFormat.FP8, draft=draft)))
    assert asked == [("mixquant_set_drafts", True), ("mixquant_set_drafts", False)]


async def test_prefixes_of_another_policy_are_held_no_more(engine: StandIn) -> None:
    """Asked for again, they would be read by the new policy under the old one's keys."""
    await hold_behind_turn(engine, request(USER, thread_id="T", keep=Keep(seconds=60)))
    assert len(engine._kept) == 1

    async def answer(name: str, args: Any) -> list[dict[str, Any]]:
        return [{"prefill_format": "int8"}]

    engine._rows, engine.llm.collective_rpc = cast("Any", SimpleNamespace()), answer
    await on_its_loop(engine, engine.set_policy(PrecisionPolicy.of("mixquant-int8")))
    assert len(engine._kept) == 0
