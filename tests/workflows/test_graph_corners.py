"""The bundled graphs where things are odd: broken calls beside good ones, interrupts, named users, full notebooks."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, interrupt
from list_model import ListModel, call, say

from mixquant_agents.errors import ConfigError
from mixquant_tools.retrieval import Document, DocumentIndex, NoteBook
from mixquant_workflows import memory_agent, retrieval_agent, tool_agent
from mixquant_workflows.graphs.retrieval import check_citations

INDEX = DocumentIndex([Document("barn.md", "# Barn\nThe barn is painted red every spring by Olga.")])
CONFIG: Any = {"configurable": {"thread_id": "a"}}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def ask(question: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(question)]}


def answers_to_calls(state: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m.tool_call_id, m.status) for m in state["messages"] if isinstance(m, ToolMessage)]


def half_broken(name: str, **args: Any) -> AIMessage:
    """One message with a call that can be read and one that cannot."""
    good = {"name": name, "args": args, "id": "good"}
    bad = {"name": name, "args": "{", "id": "bad", "error": "not JSON"}
    return AIMessage("", tool_calls=[good], invalid_tool_calls=[bad])


@pytest.mark.parametrize("in_order", [False, True])
def test_a_broken_call_beside_a_good_one_is_answered_too(in_order: bool) -> None:
    model = ListModel(answers=[half_broken("add", a=1, b=2), say("3")])
    state = tool_agent(model, [add], in_order=in_order).invoke(ask("1+2"))
    assert answers_to_calls(state) == [("good", "success"), ("bad", "error")]
    assert len(model.seen) == 2


def test_a_broken_call_beside_a_search_or_a_note_is_answered_too() -> None:
    model = ListModel(answers=[half_broken("search_documents", query="barn"), say("Red [1].")])
    searched = retrieval_agent(model, INDEX).invoke(ask("What colour?"))
    model = ListModel(answers=[half_broken("save_note", text="Ann likes tea."), say("Noted.")])
    noted = memory_agent(model, NoteBook(), use_tools=True).invoke(ask("I like tea."))
    for state in (searched, noted):
        assert answers_to_calls(state) == [("good", "success"), ("bad", "error")]


@pytest.mark.parametrize("in_order", [False, True])
def test_tools_see_the_state(in_order: bool) -> None:
    @tool
    def count(state: Annotated[dict[str, Any], InjectedState]) -> str:
        """Count the messages."""
        return str(len(state["messages"]))

    state = tool_agent(ListModel(answers=[call("count"), say("2")]), [count], in_order=in_order).invoke(ask("?"))
    assert state["messages"][2].text == "2"


def test_a_tool_that_asks_a_human_does_not_make_its_neighbour_run_twice() -> None:
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


@pytest.mark.parametrize("kind", ["tool", "memory"])
def test_a_call_whose_run_was_killed_does_not_spoil_the_thread(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        """What no tool node catches."""

    def die(*_: Any) -> int:
        raise KilledError

    @tool
    def stop() -> str:
        """Do not come back."""
        return str(die())

    book = NoteBook()
    monkeypatch.setattr(book, "add", die)
    model = ListModel(answers=[call("stop" if kind == "tool" else "save_note", text="x"), say("Hello.")])
    keep: Any = {"checkpointer": InMemorySaver()}
    graph = tool_agent(model, [stop], **keep) if kind == "tool" else memory_agent(model, book, use_tools=True, **keep)
    with pytest.raises(KilledError):
        graph.invoke(ask("go"), CONFIG)
    graph.invoke(ask("Are you there?"), CONFIG)
    shown = [(message.type, message.text) for message in model.seen[1][0][1:]]
    assert shown == [
        ("human", "go"), ("ai", ""), ("tool", "error: the call did not come to an end"), ("human", "Are you there?"),
    ]  # fmt: skip


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


def test_a_citation_of_ten_thousand_digits_is_none() -> None:
    assert check_citations(f"[{'1' * 10_000}] [2]", []) == [{"number": 2, "source": None}]


def test_memory_agent_goes_on_with_a_full_notebook_and_keeps_the_summary_it_has() -> None:
    book = NoteBook(max_notes=1)
    book.add("The notebook is full.")
    answers = [say("a", 10), say("b", 900), say("Ann is here."), say("c", 900), say(""), say("d", 10)]
    graph = memory_agent(ListModel(answers=answers), book, max_tokens=500, checkpointer=InMemorySaver())
    for said in ("I am Ann.", "Hello.", "Hello again.", "Bye."):
        state = graph.invoke(ask(said), CONFIG)
    assert state["summary"] == "Ann is here."
    assert len(state["messages"]) < 8


def test_memory_agent_asks_for_no_summary_where_nothing_could_be_left_out() -> None:
    model = ListModel(answers=[say("Long.", 900)])
    state = memory_agent(model, NoteBook(), max_tokens=500).invoke(ask("word " * 500))
    assert "summary" not in state
    assert len(model.seen) == 1


def test_memory_agent_does_not_take_notes_for_ever() -> None:
    answers = [call("save_note", str(n), text=f"Note {n}.") for n in range(7)]
    model = ListModel(answers=[*answers, say("Enough.")])
    state = memory_agent(model, NoteBook(), use_tools=True).invoke(ask("go"))
    assert state["messages"][-1].text == "Enough."
    assert model.seen[-1][1]["tool_choice"] == "none"
    assert answers_to_calls(state) == [*((str(n), "success") for n in range(6)), ("6", "error")]


def test_recalling_leaves_the_rest_of_a_message_alone() -> None:
    book = NoteBook()
    book.add("The barn is red.")
    picture = {"type": "image", "url": "http://127.0.0.1/barn.png"}
    asked = HumanMessage([{"type": "text", "text": "Which barn?"}, picture], name="ann", additional_kwargs={"x": 1})
    state = memory_agent(ListModel(answers=[say("Red.")]), book).invoke({"messages": [asked]})
    message = state["messages"][0]
    assert "The barn is red." in message.text
    assert message.content[-1] == picture
    assert (message.name, message.additional_kwargs["x"]) == ("ann", 1)
