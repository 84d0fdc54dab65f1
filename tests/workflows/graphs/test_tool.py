"""The tool agent: limits hold, broken calls go back, results that return direct are the answer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import pytest
from graph_doubles import CONFIG, add, answers_to_calls, ask, broken, half_broken, well_formed
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, interrupt
from list_model import ListModel, call, say

from mixquant_agents.errors import ConfigError
from mixquant_workflows import tool_agent


async def test_tool_agent_calls_and_answers() -> None:
    model = ListModel(answers=[call("add", a=3, b=4), say("7")])
    result = await tool_agent(model, [add]).ainvoke(ask("3+4?"))
    assert [message.text for message in result["messages"]] == ["3+4?", "", "7", "7"]
    first, second = (prompt for prompt, _ in model.seen)
    assert isinstance(first[0], SystemMessage)
    assert second[: len(first)] == first  # the second prompt begins with the first: the prefix cache holds


async def test_tool_agent_runs_calls_of_one_message_in_their_order_where_asked() -> None:
    ran: list[str] = []

    @tool
    def note(word: str, seconds: float) -> str:
        """Write a word down."""
        time.sleep(seconds)
        ran.append(word)
        return f"{word} after {len(ran) - 1}"

    def both() -> ListModel:
        first = {"name": "note", "args": {"word": "slow", "seconds": 0.1}, "id": "1"}
        second = {"name": "note", "args": {"word": "fast", "seconds": 0.0}, "id": "2"}
        return ListModel(answers=[AIMessage("", tool_calls=[first, second]), say("Done.")])

    ordered = tool_agent(both(), [note], in_order=True)
    state = await ordered.ainvoke(ask("write"))
    assert ran == ["slow", "fast"]
    assert [message.text for message in state["messages"][2:]] == ["slow after 0", "fast after 1", "Done."]
    assert well_formed(state["messages"])
    ran.clear()
    tool_agent(both(), [note], in_order=True).invoke(ask("write"))
    assert ran == ["slow", "fast"]
    ran.clear()
    await tool_agent(both(), [note]).ainvoke(ask("write"))
    assert ran == ["fast", "slow"]  # at once: what makes the order worth asking for


def test_tool_agent_runs_sync_and_survives_a_failing_tool() -> None:
    model = ListModel(answers=[call("broken"), call("nonsense"), say("It does not work.")])
    messages = tool_agent(model, [add, broken]).invoke(ask("try"))["messages"]
    assert "disk on fire" in messages[2].text
    assert "nonsense is not a valid tool" in messages[4].text
    assert messages[-1].text == "It does not work."


def test_tool_agent_stops_at_the_step_limit() -> None:
    model = ListModel(answers=[*(call("add", str(n), a=n, b=n) for n in range(20)), say("never")])
    model.answers[3] = say("I stop here.")
    messages = tool_agent(model, [add], max_steps=4).invoke(ask("loop"))["messages"]
    assert messages[-1].text == "I stop here."
    assert [kwargs["tool_choice"] for _, kwargs in model.seen] == ["auto", "auto", "auto", "none"]
    assert "no more tool calls" in messages[-2].text
    assert well_formed(messages)


def test_tool_agent_stops_at_repeated_calls() -> None:
    model = ListModel(answers=[call("add", str(n), a=1, b=1) for n in range(3)] + [say("It is 2.")])
    messages = tool_agent(model, [add], max_steps=50).invoke(ask("loop"))["messages"]
    assert messages[-1].text == "It is 2."
    assert "made too often" in messages[-2].text
    assert len(model.seen) == 4
    assert well_formed(messages)


def test_tool_agent_hands_invalid_calls_back() -> None:
    bad = AIMessage("", invalid_tool_calls=[{"name": "add", "args": "{", "id": None, "error": "not JSON"}])
    model = ListModel(answers=[bad, call("add", a=1, b=2), say("3")])
    messages = tool_agent(model, [add]).invoke(ask("1+2"))["messages"]
    assert messages[2].text == "error: the call is not valid (not JSON); make it again"
    assert messages[-1].text == "3"


@pytest.mark.parametrize("in_order", [False, True])
def test_broken_call_beside_a_good_one_is_answered_too(in_order: bool) -> None:
    model = ListModel(answers=[half_broken("add", a=1, b=2), say("3")])
    state = tool_agent(model, [add], in_order=in_order).invoke(ask("1+2"))
    assert answers_to_calls(state) == [("good", "success"), ("bad", "error")]
    assert len(model.seen) == 2


@pytest.mark.parametrize("in_order", [False, True])
def test_tools_see_the_state(in_order: bool) -> None:
    @tool
    def count(state: Annotated[dict[str, Any], InjectedState]) -> str:
        """Count the messages."""
        return str(len(state["messages"]))

    state = tool_agent(ListModel(answers=[call("count"), say("2")]), [count], in_order=in_order).invoke(ask("?"))
    assert state["messages"][2].text == "2"


def test_tool_that_asks_a_human_does_not_make_its_neighbour_run_twice() -> None:
    ran: list[int] = []

    @tool
    def pay(amount: int) -> str:
        """Pay."""
        ran.append(amount)
        return "paid"

    @tool
    def approve() -> str:
        """Ask a human."""
        return str(interrupt("May I?"))

    calls = [{"name": "pay", "args": {"amount": 5}, "id": "1"}, {"name": "approve", "args": {}, "id": "2"}]
    model = ListModel(answers=[AIMessage("", tool_calls=calls), say("Done.")])
    graph = tool_agent(model, [pay, approve], checkpointer=InMemorySaver())
    assert graph.invoke(ask("pay"), CONFIG)["__interrupt__"]
    messages = graph.invoke(Command(resume="yes"), CONFIG)["messages"]
    assert [message.text for message in messages[2:]] == ["paid", "yes", "Done."]
    assert ran == [5]


def test_limits_count_from_the_last_message_of_a_user_who_has_a_name() -> None:
    model = ListModel(answers=[call("add", str(n), a=n, b=n) if n % 2 == 0 else say("done") for n in range(8)])
    graph = tool_agent(model, [add], max_steps=3, checkpointer=InMemorySaver())
    for _ in range(4):
        state = graph.invoke({"messages": [HumanMessage("add", name="ann")]}, CONFIG)
    assert [status for _, status in answers_to_calls(state)] == ["success"] * 4


@pytest.mark.parametrize("limits", [{"max_steps": 1}, {"max_steps": -3}, {"max_repeats": 0}])
def test_limits_that_leave_no_room_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 2 steps"):
        tool_agent(ListModel(answers=[]), [add], **limits)  # type: ignore[arg-type] # a mapping of ints


@tool(return_direct=True)
def look_up(word: str) -> str:
    """Look a word up; what it says is the answer."""
    if word == "nothing":
        raise RuntimeError("no such word")
    return f"{word}: a body of water"


def calls(*items: tuple[str, dict[str, Any]]) -> AIMessage:
    return AIMessage(
        "", tool_calls=[{"name": name, "args": args, "id": str(n)} for n, (name, args) in enumerate(items)]
    )


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        (calls(("look_up", {"word": "lake"})), 1),
        (calls(("look_up", {"word": "lake"}), ("look_up", {"word": "pond"})), 1),
        (calls(("look_up", {"word": "lake"}), ("add", {"a": 1, "b": 2})), 2),
        (calls(("look_up", {"word": "nothing"})), 2),
    ],
    ids=["one", "two at once", "beside another", "failed"],
)
def test_return_direct_ends_the_agent_with_the_tool_s_answer(in_order: bool, answer: AIMessage, asked: int) -> None:
    model = ListModel(answers=[answer, say("I think it is a lake.")])
    agent = tool_agent(model, [look_up, add], in_order=in_order)
    messages = agent.invoke(ask("lake?"))["messages"]
    assert len(model.seen) == asked
    assert (messages[-1].type == "tool") is (asked == 1)
    assert well_formed(messages)


async def test_return_direct_beside_an_invalid_call_goes_on() -> None:
    answer = calls(("look_up", {"word": "lake"}))
    answer.invalid_tool_calls = [
        {"type": "invalid_tool_call", "name": "add", "args": "{", "id": "x", "error": "not JSON"}
    ]
    model = ListModel(answers=[answer, say("A lake.")])
    for in_order in (False, True):
        model = ListModel(answers=[answer, say("A lake.")])
        state = await tool_agent(model, [look_up, add], in_order=in_order).ainvoke(ask("lake?"))
        assert state["messages"][-1].text == "A lake."


def test_checkpoint_file_that_is_unusable_is_told_in_words(tmp_path: Path) -> None:
    from mixquant_agents import MixQuantError

    with pytest.raises(MixQuantError, match="cannot keep checkpoints"):
        tool_agent(ListModel(answers=[]), [add], checkpointer=tmp_path / "no" / "state.db")
