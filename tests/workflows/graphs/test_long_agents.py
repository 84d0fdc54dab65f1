"""Agents of LangChain's and deepagents' own making outgrow their window and go on, with nothing typed about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ContextOverflowError

CALLS = 45
"""Tool calls that the agent makes before it answers: each is a turn."""


@tool
def sound(lake: int) -> str:
    """Measure the depth of a lake."""
    return f"Lake {lake}: " + "the line went down and came up again, " * 40


class Explorer:
    """The model's side: calls the tool for one lake after the other, and sums up where it is asked to."""

    def __init__(self) -> None:
        self.lake = 0
        self.summaries = 0

    def __call__(self, request: EngineRequest) -> ScriptedTurn:
        if not request.tools:
            self.summaries += 1
            return ScriptedTurn(text=f"Lakes up to {self.lake} are measured.")
        if self.lake == CALLS:
            return ScriptedTurn(text="All lakes are measured.")
        self.lake += 1
        return ScriptedTurn(tool_calls=[{"name": "sound", "args": {"lake": self.lake}}])


def explore(window: int) -> tuple[Explorer, ScriptedEngine, MixQuantChatModel]:
    explorer = Explorer()
    engine = ScriptedEngine(explorer, max_model_len=window)
    return explorer, engine, MixQuantChatModel(engine=engine)


def went_on(explorer: Explorer, messages: Sequence[Any]) -> None:
    assert messages[-1].text == "All lakes are measured."
    assert explorer.lake == CALLS
    assert explorer.summaries >= 2


QUESTION = {"messages": [HumanMessage("Measure all lakes.")]}
STEPS = {"recursion_limit": 1_000}


async def test_without_summaries_the_window_is_too_small() -> None:
    """What the tests below would come to, were nothing summarised."""
    explorer, _, model = explore(8_192)
    with pytest.raises(ContextOverflowError):
        await create_agent(model, [sound]).ainvoke(QUESTION, STEPS)
    assert explorer.lake < CALLS


async def test_fraction_of_the_window_triggers_a_summary() -> None:
    explorer, engine, model = explore(8_192)
    summarise = SummarizationMiddleware(model=model, trigger=("fraction", 0.6), keep=("fraction", 0.2))
    state = await create_agent(model, [sound], middleware=[summarise]).ainvoke(QUESTION, STEPS)
    went_on(explorer, state["messages"])
    assert len(engine.requests) > 40


@pytest.mark.slow
async def test_deep_agent_outgrows_its_window_and_goes_on() -> None:
    explorer, engine, model = explore(12_288)
    state = await create_deep_agent(model, [sound]).ainvoke(QUESTION, STEPS)
    went_on(explorer, state["messages"])
    assert len(engine.requests) > 40


@pytest.mark.slow
async def test_deep_agent_recovers_from_an_overflow_that_nobody_foresaw() -> None:
    """A profile that knows of no window: the summary is made once the engine has refused the prompt."""
    explorer = Explorer()
    engine = ScriptedEngine(explorer, max_model_len=12_288)
    model = MixQuantChatModel(engine=engine, profile={"tool_calling": True})
    state = await create_deep_agent(model, [sound]).ainvoke(QUESTION, STEPS)
    went_on(explorer, state["messages"])


@pytest.mark.slow
def test_deep_agent_in_sync_form() -> None:
    explorer, _, model = explore(12_288)
    went_on(explorer, create_deep_agent(model, [sound]).invoke(QUESTION, STEPS)["messages"])
