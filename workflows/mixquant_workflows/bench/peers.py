"""The same agents on our engine and on ``ChatOpenAI`` → ``vllm serve``: one machine, one model, exact in both.

Overhead is wall time of a turn minus the engine's own prefill and decode time, measured by vLLM's clock on both sides.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import random
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel, SecretStr

from mixquant_agents import EngineConfig, MixQuantChatModel, PrecisionPolicy, VllmEngine
from mixquant_agents.errors import MissingDependencyError
from mixquant_workflows.bench.registry import model_folder
from mixquant_workflows.bench.server import Server, serve
from mixquant_workflows.bench.stats import bootstrap
from mixquant_workflows.graphs.steps import model_step

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["PeersPlan", "compare_peers"]

_WORDS = (
    *("the", "farm", "barn", "horse", "river", "stone", "winter", "apple", "market", "wagon", "bread", "letter"),
    *("window", "garden", "bridge", "wheel", "field"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersPlan:
    """What to run; the fields are the options of ``mixquant bench peers``."""

    model: str = "embedded"
    turns: int = 5
    words: int = 120
    answer_tokens: int = 24
    agents: int = 16
    rounds: int = 3
    max_model_len: int = 4096


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two ways to the model; ``server`` where there is one."""

    name: str
    model: BaseChatModel
    server: Server | None = None

    async def mark(self) -> float:
        """The server's engine seconds so far."""
        return await self.server.engine_seconds() if self.server is not None else 0.0

    async def engine_seconds(self, answer: AnyMessage, mark: float) -> float:
        """Prefill and decode seconds of the turn just ended, which began at ``mark``."""
        if self.server is None:
            turn = answer.response_metadata["turn"]
            return float(turn["prefill_seconds"]) + float(turn["decode_seconds"])
        for _ in range(40):  # a server counts a request a moment after its answer
            spent = await self.server.engine_seconds() - mark
            if spent > 0:
                return spent
            await asyncio.sleep(0.05)
        return 0.0


async def compare_peers(plan: PeersPlan, console: Console) -> dict[str, Any]:
    """Run both, one engine at a time, and compare.

    Returns:
        ``{"model", "ours": figures, "peers": {"chat_openai_vllm_serve": {"overhead_ratio_1", "wall_ratio_1",
        "tokens_ratio_16", …}}, "features": {feature: {side: bool}}}``. Ratios are ours over the peer's; intervals are
        95 % by bootstrap.

    Raises:
        MissingDependencyError: ``langchain-openai`` or vLLM's command is not installed.
        EngineError: an engine did not start.
    """
    folder = Path(model_folder(plan.model))
    console.print("[dim]starting our engine[/dim]")
    config = EngineConfig(
        model=plan.model, policy=PrecisionPolicy.of("exact"), max_model_len=plan.max_model_len, max_num_seqs=plan.agents
    )
    engine = VllmEngine(config)
    try:
        await engine.start()
        model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=plan.answer_tokens, ignore_eos=True)
        ours = await _measure(_Side("ours", model), plan, console)
        probe = MixQuantChatModel(engine=engine, temperature=0, max_tokens=48)
        features = {name: {"ours": value} for name, value in (await _features(probe)).items()}
    finally:
        await engine.aclose()
    console.print("[dim]starting vllm serve[/dim]")
    async with serve(folder, _arguments(plan)) as server:
        peer = await _measure(_Side("peer", _openai(server, plan, fixed_length=True), server), plan, console)
        for name, value in (await _features(_openai(server, plan, fixed_length=False))).items():
            features[name]["chat_openai_vllm_serve"] = value
    return {
        "model": plan.model,
        "turns": plan.turns,
        "agents": plan.agents,
        "rounds": plan.rounds,
        "ours": ours,
        "peers": {"chat_openai_vllm_serve": {**peer, **_ratios(ours, peer)}},
        "features": features,
        "not_run": {"langchain-llama-cpp": "needs llama-cpp-python, which must be compiled on this machine"},
    }


def _arguments(plan: PeersPlan) -> list[str]:
    """What makes the server run as our engine does: float32, eager, the same window and batch, the same template."""
    template = importlib.resources.files("mixquant_agents") / "templates" / "hermes.jinja"
    return [
        *("--served-model-name", "model", "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", str(plan.max_model_len), "--max-num-seqs", str(plan.agents)),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--chat-template", str(template)),
        *("--generation-config", "vllm", "--kv-cache-memory-bytes", str(2**30)),
    ]


def _openai(server: Server, plan: PeersPlan, *, fixed_length: bool) -> BaseChatModel:
    try:
        from langchain_openai import ChatOpenAI
    except ImportError as error:
        raise MissingDependencyError(
            f"the peer needs langchain-openai ({error}): pip install langchain-openai"
        ) from error
    return ChatOpenAI(
        base_url=server.url,
        api_key=SecretStr("none"),
        model="model",
        temperature=0,
        max_completion_tokens=plan.answer_tokens if fixed_length else 48,
        extra_body={"ignore_eos": True} if fixed_length else {},
    )


def _text(agent: int, turn: int, words: int) -> str:
    draw = random.Random(f"{agent}-{turn}")  # noqa: S311 - the same text in every run
    return f"Message {turn} of agent {agent}: " + " ".join(draw.choices(_WORDS, k=words))


async def _measure(side: _Side, plan: PeersPlan, console: Console) -> dict[str, Any]:
    """One agent alone, then all together; each agent of each round has words of its own."""
    builder = StateGraph(MessagesState)
    builder.add_node("model", model_step(side.model, "You are a helpful assistant."))
    builder.add_edge(START, "model")
    builder.add_edge("model", END)
    graph = builder.compile()

    async def agent(number: int, watch: list[tuple[float, float]] | None) -> int:
        messages: list[AnyMessage] = []
        tokens = 0
        for turn in range(plan.turns):
            mark = await side.mark() if watch is not None else 0.0
            began = time.perf_counter()
            state = await graph.ainvoke({"messages": [*messages, HumanMessage(_text(number, turn, plan.words))]})
            wall = time.perf_counter() - began
            messages = state["messages"]
            usage = messages[-1].usage_metadata if isinstance(messages[-1], AIMessage) else None
            tokens += usage["output_tokens"] if usage else 0
            if watch is not None:
                watch.append((wall, await side.engine_seconds(messages[-1], mark)))
        return tokens

    await agent(9_999, None)  # warm up
    alone: list[tuple[float, float]] = []
    rates: list[float] = []
    for round_ in range(plan.rounds):
        console.print(f"[dim]{side.name}: round {round_ + 1} of {plan.rounds}[/dim]")
        await agent(1_000 * round_, alone)
        began = time.perf_counter()
        counts = await asyncio.gather(*(agent(1_000 * round_ + 1 + n, None) for n in range(plan.agents)))
        rates.append(sum(counts) / (time.perf_counter() - began))
    overheads = [1e3 * (wall - engine) for wall, engine in alone]
    return {
        "overhead_p50_ms": median(overheads),
        "overhead_ms": overheads,
        "wall_p50_s": median(wall for wall, _ in alone),
        "wall_s": [wall for wall, _ in alone],
        "tokens_per_second": rates,
    }


def _ratios(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """Ours over the peer's, turn by turn (the same texts), with intervals."""
    overhead = [mine / theirs for mine, theirs in zip(ours["overhead_ms"], peer["overhead_ms"], strict=True)]
    wall = [mine / theirs for mine, theirs in zip(ours["wall_s"], peer["wall_s"], strict=True)]
    rate = [mine / theirs for mine, theirs in zip(ours["tokens_per_second"], peer["tokens_per_second"], strict=True)]
    return {
        "overhead_ratio_1": ours["overhead_p50_ms"] / peer["overhead_p50_ms"],
        "overhead_ratio_ci95": bootstrap(overhead),
        "wall_ratio_1": ours["wall_p50_s"] / peer["wall_p50_s"],
        "wall_ratio_ci95": bootstrap(wall),
        "tokens_ratio_16": median(rate),
        "tokens_ratio_ci95": bootstrap(rate),
    }


class _Sum(BaseModel):
    """Add two numbers."""

    a: int
    b: int


async def _features(model: BaseChatModel) -> dict[str, bool]:
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
