"""What the chat layer itself costs, measured without a model: the scripted engine's tokens are free.

Costs are CPU seconds of this process, so that other work on the machine counts little. Both sides alternate in one run;
a ratio is the median of the ratios of neighbouring measurements.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from pydantic import BaseModel, ConfigDict

from mixquant_agents.chat.model import MixQuantChatModel
from mixquant_agents.engine.scripted import ScriptedEngine, ScriptedTurn

__all__ = ["TurnsResult", "measure"]

_TEXT = "The quick brown fox jumps over the lazy dog, and 10,000 tokens later it is still running.\n"
PROMPT: list[BaseMessage] = [HumanMessage("Go on.")]
_TOOL = {
    "type": "function",
    "function": {
        "name": "write_file",
        "description": "Write a file.",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    },
}


class TurnsResult(BaseModel):
    """Figures of ``mixquant bench turns``; seconds are CPU seconds, medians over ``rounds``.

    Attributes:
        stream_cost_ratio: ``astream`` of ``stream_tokens`` chunks from the scripted engine, over the same chunks from
            ``langchain_core``'s ``FakeListChatModel``.
        tool_call_growth: producing a streamed tool call of ``tool_tokens`` tokens, over one of half that; 2 is linear.
            The consumer's accumulation is not counted.
        leaked_requests: requests still running in the engine after ``streams`` concurrent streams, a third of them
            cancelled at random points.
        leaked_tasks: event-loop tasks left behind by them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stream_cost_ratio: float
    tool_call_growth: float
    leaked_requests: int
    leaked_tasks: int
    rounds: int
    stream_tokens: int
    stream_seconds: float
    stream_baseline_seconds: float
    tool_tokens: int
    tool_seconds: float
    tool_half_seconds: float
    streams: int
    cancelled: int


async def measure(
    *,
    rounds: int = 15,
    stream_tokens: int = 10_000,
    tool_tokens: int = 8_000,
    streams: int = 64,
    progress: Callable[[str], None] = lambda _: None,
) -> TurnsResult:
    """Run the measurements.

    Args:
        rounds: repetitions of each, interleaved.
        streams: concurrent streams of the leak check.
        progress: called with what begins, in words.
    """
    progress(f"streaming {stream_tokens} tokens, {rounds} rounds against langchain_core's fake model")
    text = (_TEXT * (stream_tokens // len(_TEXT) + 1))[:stream_tokens]  # the fake model streams single characters
    own_seconds, fake, ratio = await _interleaved(
        rounds, lambda: _ours(list(text)), lambda: _consumed(FakeListChatModel(responses=[text]))
    )
    progress(f"streaming tool calls of {tool_tokens} and {tool_tokens // 2} tokens, {rounds} rounds")
    whole, half, growth = await _interleaved(
        rounds, lambda: _produced(_call_of(tool_tokens)), lambda: _produced(_call_of(tool_tokens // 2))
    )
    progress(f"{streams} concurrent streams, a third cancelled at random points")
    requests, tasks, cancelled = await leaks(streams)
    return TurnsResult(
        stream_cost_ratio=ratio,
        tool_call_growth=growth,
        leaked_requests=requests,
        leaked_tasks=tasks,
        rounds=rounds,
        stream_tokens=stream_tokens,
        stream_seconds=own_seconds,
        stream_baseline_seconds=fake,
        tool_tokens=tool_tokens,
        tool_seconds=whole,
        tool_half_seconds=half,
        streams=streams,
        cancelled=cancelled,
    )


Work = Callable[[], Awaitable[float]]


async def _interleaved(rounds: int, first: Work, second: Work) -> tuple[float, float, float]:
    """Median CPU seconds of both and the median of their ratio; they take turns and change who begins. One unmeasured
    round warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    frozen_for_good = gc.get_freeze_count() > 0  # by the program: stays so
    gc.collect()
    gc.freeze()  # what was there before is the program's, not the chat layer's: neither side pays for looking at it
    try:
        await first(), await second()
        for number in range(rounds):
            for side in (0, 1) if number % 2 else (1, 0):
                seconds[side].append(await (first, second)[side]())
    finally:
        if not frozen_for_good:
            gc.unfreeze()
    ratios = [first_seconds / second_seconds for first_seconds, second_seconds in zip(*seconds, strict=True)]
    return statistics.median(seconds[0]), statistics.median(seconds[1]), statistics.median(ratios)


async def _timed(chunks: AsyncIterator[Any]) -> float:
    """CPU seconds to read ``chunks`` to the end, keeping none."""
    gc.collect()
    start = time.process_time()
    async for _ in chunks:
        pass
    return time.process_time() - start


async def _consumed(model: Any) -> float:
    return await _timed(model.astream(PROMPT))


async def _ours(tokens: Sequence[str]) -> float:
    return await _consumed(MixQuantChatModel(engine=ScriptedEngine([ScriptedTurn(text=tokens)])))


async def _produced(tokens: Sequence[str]) -> float:
    """CPU seconds to produce the chunks of an answer, below LangChain's ``astream``, which gathers and merges them."""
    model = MixQuantChatModel(engine=ScriptedEngine([ScriptedTurn(text=tokens)]))
    return await _timed(model._astream(PROMPT, tools=[_TOOL]))


def _call_of(tokens: int) -> list[str]:
    """A Hermes tool call of that many tokens."""
    head = ["<tool_call>", "\n", '{"name": "', "write", "_file", '", "', "arguments", '": {"', "text", '": "']
    tail = ['"', "}", "}", "\n", "</tool_call>"]
    words = [" word", " and", " line", "\\n", " more"]
    return [*head, *(words[number % len(words)] for number in range(tokens - len(head) - len(tail))), *tail]


async def leaks(streams: int, *, seed: int = 0) -> tuple[int, int, int]:
    """``(requests still running, tasks left, streams cancelled)`` after concurrent streams of which every third is
    cancelled after a random number of tokens."""
    engine = ScriptedEngine(lambda _: ScriptedTurn(text=["x"] * 200, token_seconds=0.0002))
    model = MixQuantChatModel(engine=engine)
    draw = random.Random(seed)  # noqa: S311 - no secret
    before = len(asyncio.all_tasks())

    async def read(stop_after: int | None) -> None:
        seen = 0
        async for _ in model.astream(PROMPT):
            seen += 1
            if stop_after is not None and seen == stop_after:
                task = asyncio.current_task()
                if task is not None:
                    task.cancel()
                await asyncio.sleep(0)

    readers = [
        asyncio.create_task(read(draw.randrange(1, 180) if number % 3 == 0 else None)) for number in range(streams)
    ]
    results = await asyncio.gather(*readers, return_exceptions=True)
    for _ in range(3):  # generators that were left behind are closed by the loop's own tasks
        await asyncio.sleep(0)
    cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
    return engine.running, len(asyncio.all_tasks()) - before, cancelled
