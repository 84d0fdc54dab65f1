"""Threads of LangGraph agents at a server, with a checkpointer and a store: the user's state, and what was counted."""

import asyncio
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import RetryPolicy

from mixquant_agents import MixQuantChatModel, OpenAIEngine, TurnStore
from mixquant_agents.errors import RemoteEngineError
from mixquant_agents.telemetry import StoreRecorder


class State(TypedDict):
    """A conversation, and how many turns it has had."""

    messages: Annotated[list[AnyMessage], add_messages]
    done: Annotated[int, operator.add]


@dataclass
class Outcome:
    """What came of it: answers by thread, the state's counter by thread, and the store's turns by thread."""

    answers: dict[str, list[str]]
    done: dict[str, int]
    turns: dict[str, list[Any]]


async def run_agents(
    url: str,
    model: str,
    store: Path,
    *,
    threads: int,
    turns: int,
    answered: Callable[[int], None] = lambda _: None,
    **options: Any,
) -> Outcome:
    """``threads`` conversations of ``turns`` turns at once. A node that failed is run again, from the checkpoint.

    Args:
        answered: called with the number of answers so far, while other turns are on their way.
    """
    count = 0
    recorder = StoreRecorder(store)
    engine = OpenAIEngine(model, base_url=url, first_token_timeout=300, silence_timeout=300)
    chat = MixQuantChatModel(engine=engine, recorders=[recorder], **options)

    async def answer(state: State) -> dict[str, Any]:
        nonlocal count
        message = await chat.ainvoke(state["messages"])
        count += 1
        answered(count)
        return {"messages": [message], "done": 1}

    again = RetryPolicy(initial_interval=0.2, max_attempts=8, max_interval=2.0, retry_on=RemoteEngineError)
    builder = StateGraph(State)
    builder.add_node("answer", answer, retry_policy=again)
    builder.add_edge(START, "answer")
    graph = builder.compile(checkpointer=InMemorySaver())

    async def thread(name: str) -> State:
        config: Any = {"configurable": {"thread_id": name}}
        for number in range(turns):
            await graph.ainvoke({"messages": [HumanMessage(f"{name}: {number}")]}, config)
        return (await graph.aget_state(config)).values

    names = [f"thread-{number}" for number in range(threads)]
    states = dict(zip(names, await asyncio.gather(*map(thread, names)), strict=True))
    await engine.aclose()
    recorder.close()
    opened = TurnStore(store)
    seen = {name: opened.thread(name) for name in names}
    opened.close()
    return Outcome(
        answers={
            name: [str(m.content) for m in s["messages"] if isinstance(m, AIMessage)] for name, s in states.items()
        },
        done={name: state["done"] for name, state in states.items()},
        turns=seen,
    )


def check(outcome: Outcome, *, threads: int, turns: int, failures: bool = True) -> None:
    """Every thread finished; no turn was lost, or run twice against the user's state.

    Args:
        failures: some turn was in the middle of its answer when its server died, and the store shows it.
    """
    assert len(outcome.answers) == threads
    assert set(outcome.done.values()) == {turns}
    failed = 0
    for name, answers in outcome.answers.items():
        assert len(answers) == turns
        good = [turn for turn in outcome.turns[name] if turn.error is None and not turn.aborted]
        assert [turn.turn_index for turn in good] == list(range(turns)), "each turn answered once, in order"
        failed += len(outcome.turns[name]) - len(good)
    assert failed or not failures, "the store shows what was lost with the replica"
