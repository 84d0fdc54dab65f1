"""What the real engine knows of an agent: tokens as they were written, prefixes read ahead and held."""

from __future__ import annotations

from typing import Any

import pytest
from deepagents import HarnessProfile, create_deep_agent, register_harness_profile
from engine_requests import ADD, asked
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.messages import AIMessage
from pydantic import BaseModel

from mixquant_agents import MixQuantChatModel
from mixquant_agents.engine.base import EngineRequest, Keep, NamedTool
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.records import TurnCounts

pytestmark = pytest.mark.engine
QUESTION = {"role": "user", "content": "What is 31 + 44? " + "Please be careful with the numbers. " * 40}
LONG = "The lake lies high above the valley, and nobody has ever seen its ground. " * 16
"""About 270 tokens."""


async def turn(engine: VllmEngine, request: EngineRequest) -> tuple[dict[str, Any], TurnCounts, list[int]]:
    """The answer as the conversation holds it, the counts, and prompt and answer as tokens."""
    answer: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: dict[int, dict[str, str]] = {}
    tokens: list[int] = []
    counts, prompt = None, None
    async for delta in engine.stream(request):
        answer["content"] += delta.content
        tokens += delta.token_ids
        for piece in delta.tool_calls:
            call = calls.setdefault(piece.index, {"id": str(piece.id), "name": str(piece.name), "arguments": ""})
            call["arguments"] += piece.arguments
        counts, prompt = delta.counts or counts, delta.prompt_token_ids or prompt
    assert counts is not None
    assert prompt is not None
    if calls:
        answer["tool_calls"] = [{"id": call.pop("id"), "type": "function", "function": call} for call in calls.values()]
    return answer, counts, [*prompt, *tokens]


async def block_of(engine: VllmEngine) -> int:
    """Tokens of a KV block."""
    running = engine._handle.running
    assert running is not None
    return int(running.llm.vllm_config.cache_config.block_size)


async def test_agents_turns_go_on_from_their_own_tokens(engine: VllmEngine) -> None:
    await engine.reset_prefix_cache()
    block = await block_of(engine)
    messages = [QUESTION]
    fields: dict[str, Any] = {"tools": [ADD], "thread_id": "T", "keep": Keep(seconds=3600)}
    answer, counts, written = await turn(engine, asked(messages, 64, tool_choice=NamedTool("add"), **fields))
    assert counts.verbatim_tokens == 0
    (call,) = answer["tool_calls"]
    assert (await engine.stats()).kept_threads == 1
    messages += [answer, {"role": "tool", "tool_call_id": call["id"], "content": "75"}]
    again, counts, whole = await turn(engine, asked(messages, 24, **fields))
    assert counts.verbatim_tokens == len(written) - 1
    assert whole[: len(written)] == written
    assert counts.cached_tokens == (len(written) - 1) // block * block
    assert counts.kept_tokens == counts.cached_tokens
    assert (await engine.stats()).kept_threads == ("tool_calls" in again)
    await engine.release("T")
    assert (await engine.stats()).kept_threads == 0
    plain = await turn(engine, asked([*messages], 8, tools=[ADD], verbatim_history=False))
    assert plain[1].verbatim_tokens is None


async def test_prefix_that_was_read_ahead_is_found(engine: VllmEngine) -> None:
    await engine.reset_prefix_cache()
    before = (await engine.stats()).warmed_tokens
    system = {"role": "system", "content": LONG}
    read = await engine.prefetch(asked([system], tools=[ADD]))
    assert read > 0
    assert (await engine.stats()).warmed_tokens == before + read
    _, counts, _ = await turn(engine, asked([system, {"role": "user", "content": "Hello?"}], tools=[ADD]))
    assert counts.cached_tokens == counts.warmed_tokens == read

    begun = [{"role": "user", "content": f"Look it up. {LONG}"}]
    read = await engine.prefetch(asked(begun), growing=True)
    _, counts, _ = await turn(engine, asked([{"role": "user", "content": f"Look it up. {LONG} And the end of it."}]))
    assert counts.cached_tokens == counts.warmed_tokens == read > 0


@pytest.mark.parametrize("seconds", [3600.0, None])
async def test_kept_prefix_outlives_others_turns(engine: VllmEngine, seconds: float | None) -> None:
    """The cache holds about 2,100 tokens; others read more than that before the thread comes back."""
    await engine.reset_prefix_cache()
    keep = Keep(seconds=seconds) if seconds is not None else None
    fields: dict[str, Any] = {"tools": [ADD], "thread_id": f"K{seconds}", "keep": keep}
    messages = [QUESTION]
    answer, _, written = await turn(engine, asked(messages, 64, tool_choice=NamedTool("add"), **fields))
    for number in range(9):
        await turn(engine, asked([{"role": "user", "content": f"{number} {LONG}"}], 2))
    messages += [answer, {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "75"}]
    _, counts, _ = await turn(engine, asked(messages, 2, **fields))
    block = await block_of(engine)
    if seconds is None:
        assert counts.cached_tokens == 0
        assert counts.kept_tokens == 0
    else:
        assert counts.cached_tokens == (len(written) - 1) // block * block
        assert counts.kept_tokens == counts.cached_tokens


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    degrees: int


def temperature(city: str) -> str:
    """Temperature in a city, in degrees Celsius."""
    return f"{city}: 21 degrees"


@wrap_model_call
async def no_tools_behind_a_result(request: Any, handler: Any) -> Any:
    """The embedded model ends with a sentence; asked for a call or JSON it goes on to call."""
    return await handler(request.override(tools=[]) if request.messages[-1].type == "tool" else request)


def deep_agent(model: MixQuantChatModel, *rest: Any, **settings: Any) -> Any:
    """deepagents' own, whose tools take 2,750 tokens and whose summaries want more room than this engine's window: of
    the tools it keeps ``ls``."""
    small = HarnessProfile(
        excluded_tools=frozenset({"read_file", "write_file", "edit_file", "delete", "glob", "grep", "task"}),
        excluded_middleware=frozenset({"SummarizationMiddleware"}),
    )
    register_harness_profile("mixquant:embedded", small)
    return create_deep_agent(model, *rest, **settings)


@pytest.mark.parametrize("make", [create_agent, deep_agent])
async def test_agents_answer_by_a_schema_takes_no_turn_of_its_own(engine: VllmEngine, make: Any) -> None:
    model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=48)
    question = {"messages": [("human", "How warm is it in Graz?")]}
    plain = (await make(model, [temperature]).ainvoke(question))["messages"]
    forced = await model.with_structured_output(Weather).ainvoke(plain)

    schema = ProviderStrategy(Weather)
    agent = make(model, [temperature], response_format=schema, middleware=[no_tools_behind_a_result])
    result = await agent.ainvoke(question)
    assert result["structured_response"].degrees == 21  # the small model may misspell the city
    turns = [message for message in result["messages"] if isinstance(message, AIMessage)]
    assert [call["name"] for call in turns[0].tool_calls] == ["temperature"], "under the grammar of both"
    assert isinstance(forced, Weather)
    assert len(turns) == sum(isinstance(message, AIMessage) for message in plain) == 2, "the forced turn came on top"
