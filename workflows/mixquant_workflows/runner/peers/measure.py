"""What each side of a comparison is made to do, and how it is measured."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage
from langchain_core.runnables import Runnable
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

from mixquant_workflows.graphs.steps import model_step
from mixquant_workflows.runner.stats import paired_ratio

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Model", "PeersPlan", "Side", "features", "measure", "ratios"]

_WORDS = (
    *("the", "farm", "barn", "horse", "river", "stone", "winter", "apple", "market", "wagon", "bread", "letter"),
    *("window", "garden", "bridge", "wheel", "field"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersPlan:
    """What to run; the fields are the options of ``mixquant bench peers``."""

    model: str = "embedded"
    turns: int = 4
    words: int = 120
    answer_tokens: int = 24
    agents: int = 16
    rounds: int = 6
    max_model_len: int = 4096
    out: Path | None = None
    llama_packages: Path | None = None
    command: str = "mixquant bench peers"


Model = Runnable[LanguageModelInput, AIMessage]
"""A chat model, with or without settings bound to it."""


class Side:
    """One way to a model.

    Attributes:
        remark: what must be said beside the figures.
    """

    remark: str | None = None

    def __init__(self, name: str, model: Model) -> None:
        self.name = name
        self.model = model

    async def mark(self) -> float:
        """The engine seconds that the side has counted so far; 0 where each answer tells its own."""
        return 0.0

    async def engine_seconds(self, answer: AnyMessage, mark: float) -> float:
        """Prefill and decode seconds of the turn just ended, which began at ``mark``, by the engine's own clock."""
        turn = answer.response_metadata["turn"]
        return float(turn["prefill_seconds"]) + float(turn["decode_seconds"])


def _text(agent: int, turn: int, words: int) -> str:
    draw = random.Random(f"{agent}-{turn}")  # noqa: S311 - the same text in every run
    return f"Message {turn} of agent {agent}: " + " ".join(draw.choices(_WORDS, k=words))


async def measure(sides: Sequence[Side], plan: PeersPlan, console: Console) -> list[dict[str, Any]]:
    """Figures of each side: one agent alone, then all together, in rounds; each agent of each round has words of its
    own. The sides take turns within a round, and who begins changes: what disturbs the machine disturbs both."""
    runs = [_Run(side, plan) for side in sides]
    for run in runs:
        await run.agent(9_999, None)  # warm up
    for number in range(plan.rounds):
        for run in runs if number % 2 == 0 else reversed(runs):
            console.print(f"{run.side.name}: round {number + 1} of {plan.rounds}", style="dim")
            await run.round(number)
    return [run.figures() for run in runs]


class _Run:
    """What one side did."""

    def __init__(self, side: Side, plan: PeersPlan) -> None:
        builder = StateGraph(MessagesState)
        builder.add_node("model", model_step(side.model, "You are a helpful assistant."))
        builder.add_edge(START, "model")
        builder.add_edge("model", END)
        self.side = side
        self._graph = builder.compile()
        self._plan = plan
        self._alone: list[tuple[float, float]] = []
        self._rates: list[float] = []

    async def agent(self, number: int, watch: list[tuple[float, float]] | None) -> int:
        """One conversation; its answers' tokens. Wall and engine seconds of each turn go to ``watch``."""
        side, plan = self.side, self._plan
        messages: list[AnyMessage] = []
        tokens = 0
        for turn in range(plan.turns):
            mark = await side.mark() if watch is not None else 0.0
            began = time.perf_counter()
            state = await self._graph.ainvoke({"messages": [*messages, HumanMessage(_text(number, turn, plan.words))]})
            wall = time.perf_counter() - began
            messages = state["messages"]
            usage = messages[-1].usage_metadata if isinstance(messages[-1], AIMessage) else None
            # Every answer is made to have this length; a side that reports no usage is believed.
            tokens += usage["output_tokens"] if usage else plan.answer_tokens
            if watch is not None:
                watch.append((wall, await side.engine_seconds(messages[-1], mark)))
        return tokens

    async def round(self, number: int) -> None:
        """One agent alone, then all together."""
        await self.agent(1_000 * number, self._alone)
        began = time.perf_counter()
        counts = await asyncio.gather(*(self.agent(1_000 * number + 1 + n, None) for n in range(self._plan.agents)))
        self._rates.append(sum(counts) / (time.perf_counter() - began))

    def figures(self) -> dict[str, Any]:
        """Turn by turn of the agent alone, and tokens a second of all agents by round."""
        overheads = [1e3 * (wall - engine) for wall, engine in self._alone]
        return {
            "overhead_p50_ms": median(overheads),
            "overhead_ms": overheads,
            "wall_p50_s": median(wall for wall, _ in self._alone),
            "wall_s": [wall for wall, _ in self._alone],
            "tokens_per_second": self._rates,
        }


def ratios(own: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """Ours over the peer's, turn by turn or round by round (the same texts), with intervals."""
    result: dict[str, Any] = {}
    for name, key, statistic in (
        ("overhead_ratio", "overhead_ms", median),
        ("wall_ratio", "wall_s", median),
        ("tokens_ratio", "tokens_per_second", fmean),
    ):
        count = 16 if name == "tokens_ratio" else 1
        result[f"{name}_{count}"], result[f"{name}_ci95"] = paired_ratio(own[key], peer[key], statistic)
    return result


class _Sum(BaseModel):
    """Add two numbers."""

    a: int
    b: int


async def features(model: BaseChatModel) -> dict[str, bool]:
    """What works, tried out with the same calls on each side."""

    async def works(attempt: Awaitable[bool]) -> bool:
        try:
            return await attempt
        except Exception:  # whatever it is, the feature does not work
            return False

    async def last_chunk() -> AIMessageChunk:
        total: Any = None
        async for chunk in model.astream("Say hello."):
            total = chunk if total is None else total + chunk
        return total  # type: ignore[no-any-return]  # the sum of chunks is a chunk

    async def cached() -> bool:
        question = _text(5, 5, 150)
        await model.ainvoke(question)
        usage = (await model.ainvoke(question)).usage_metadata
        return bool(usage and usage.get("input_token_details", {}).get("cache_read"))

    async def phases() -> bool:
        turn = (await model.ainvoke("Say hello.")).response_metadata.get("turn") or {}
        return turn.get("prefill_seconds") is not None and turn.get("decode_seconds") is not None

    async def pieces() -> bool:
        bound = model.bind_tools([_Sum], tool_choice="_Sum")
        chunks = [chunk async for chunk in bound.astream("Add 3 and 4.")]
        return sum(bool(getattr(chunk, "tool_call_chunks", None)) for chunk in chunks) > 2

    async def structured() -> bool:
        return isinstance(await model.with_structured_output(_Sum).ainvoke("Add 3 and 4."), _Sum)

    async def usage() -> bool:
        return bool((await last_chunk()).usage_metadata)

    return {
        "usage in streams": await works(usage()),
        "cached tokens in usage": await works(cached()),
        "prefill and decode seconds per turn": await works(phases()),
        "tool calls streamed in pieces": await works(pieces()),
        "structured output": await works(structured()),
    }
