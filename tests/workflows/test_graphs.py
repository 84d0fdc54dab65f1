"""The bundled graphs: limits hold, citations are checked, old talk is summarised, prompts only grow at their end."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from list_model import ListModel, call, say

from mixquant_tools.retrieval import Document, DocumentIndex, NoteBook
from mixquant_workflows import memory_agent, retrieval_agent, tool_agent

INDEX = DocumentIndex(
    [
        Document("barn.md", "# Barn\nThe barn is painted red every spring by Olga."),
        Document("horse.md", "# Horse\nThe horse sleeps standing in the northern stable."),
    ]
)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def broken() -> str:
    """Always fails."""
    raise RuntimeError("disk on fire")


def ask(question: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(question)]}


def well_formed(messages: list[AnyMessage]) -> bool:
    """Every tool call has its answer, and every tool message its call."""
    asked = [item["id"] for message in messages if isinstance(message, AIMessage) for item in message.tool_calls]
    answered = [message.tool_call_id for message in messages if isinstance(message, ToolMessage)]
    return [id_ for id_ in answered if id_ != "invalid"] == asked


async def test_tool_agent_calls_and_answers() -> None:
    model = ListModel(answers=[call("add", a=3, b=4), say("7")])
    result = await tool_agent(model, [add]).ainvoke(ask("3+4?"))
    assert [message.text for message in result["messages"]] == ["3+4?", "", "7", "7"]
    first, second = (prompt for prompt, _ in model.seen)
    assert isinstance(first[0], SystemMessage)
    assert second[: len(first)] == first  # the second prompt begins with the first: the prefix cache holds


async def test_calls_of_one_message_run_in_their_order_where_asked() -> None:
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


async def test_retrieval_agent_checks_citations() -> None:
    found = next(hit.number for hit in INDEX.search("barn painted"))
    model = ListModel(
        answers=[
            call("search_documents", query="barn painted"),
            call("read_document", "2", path="barn.md"),
            say(f"Olga paints it [{found}] in summer [99]."),
            say(f"Olga paints it [{found}]."),
        ]
    )
    state = await retrieval_agent(model, INDEX).ainvoke(ask("Who paints the barn?"))
    assert [kwargs["tool_choice"] for _, kwargs in model.seen] == ["search_documents", "auto", "auto", "none"]
    assert "passages [99]" in model.seen[3][0][-1].text
    assert state["citations"] == [{"number": found, "source": "barn.md:1-2"}]
    assert state["messages"][-1].text == f"Olga paints it [{found}]."
    assert "Olga" in state["sources"][0]["text"]


def test_retrieval_agent_complains_once_only() -> None:
    model = ListModel(answers=[call("search_documents", query="barn"), say("Red [98]."), say("Red [99].")])
    state = retrieval_agent(model, INDEX).invoke(ask("What colour?"))
    assert state["citations"] == [{"number": 99, "source": None}]
    assert len(model.seen) == 3


def test_guided_retrieval_names_the_tool_and_falls_back_to_the_question() -> None:
    model = ListModel(answers=[call("search_documents", query="zzz"), say("Standing.")])
    state = retrieval_agent(model, INDEX, guided=True).invoke(ask("Where does the horse sleep?"))
    assert [kwargs["tool_choice"] for _, kwargs in model.seen] == ["search_documents", "none"]
    assert state["sources"][0]["path"] == "horse.md"
    assert state["messages"][-1].text == "Standing."
    assert well_formed(state["messages"])


def test_retrieval_agent_limits_searches() -> None:
    answers = [call("search_documents", str(n), query=f"barn {n}") for n in range(4)]
    model = ListModel(answers=[*answers, say("Red [1].")])
    state = retrieval_agent(model, INDEX, max_searches=3).invoke(ask("What colour?"))
    assert model.seen[-1][1]["tool_choice"] == "none"
    assert state["messages"][-1].text == "Red [1]."
    assert well_formed(state["messages"])


def test_second_question_extends_the_first_prompt(tmp_path: Path) -> None:
    model = ListModel(
        answers=[
            call("search_documents", query="barn"), say("Red [1]."),
            call("search_documents", "2", query="horse"), say("Standing [2]."),
        ]
    )  # fmt: skip
    graph = retrieval_agent(model, INDEX, checkpointer=tmp_path / "state.db")
    config = {"configurable": {"thread_id": "a"}}
    graph.invoke(ask("What colour is the barn?"), config)
    state = graph.invoke(ask("How does the horse sleep?"), config)
    prompts = [[(type(m), m.text) for m in prompt] for prompt, _ in model.seen]
    assert all(after[: len(before)] == before for before, after in itertools.pairwise(prompts))
    assert [source["path"] for source in state["sources"]] == ["horse.md"]


def test_memory_agent_summarises_and_recalls() -> None:
    book = NoteBook()
    answers = [
        say("Nice to meet you.", 50),
        say("Noted.", 80),
        say("Sure.", 900),
        say("Ann, who has a dog named Rex."),
        say("Rex!"),
    ]
    model = ListModel(answers=answers)
    graph = memory_agent(model, book, max_tokens=500, checkpointer=":memory:")
    config = {"configurable": {"thread_id": "a"}}
    graph.invoke(ask("I am Ann and my dog is called Rex."), config)
    graph.invoke(ask("The weather is fine. " * 20), config)
    state = graph.invoke(ask("Tell me a joke."), config)
    assert state["summary"] == "Ann, who has a dog named Rex."
    assert any("Rex" in note for _, note in book.all())
    assert all("Rex" not in message.text for message in state["messages"])
    summary_prompt, answer_prompt = model.seen[3][0], model.seen[2][0]
    assert summary_prompt[: len(answer_prompt)] == answer_prompt
    state = graph.invoke(ask("What is my dog called?"), config)
    prompt = model.seen[4][0]
    assert "Ann, who has a dog named Rex." in prompt[0].text
    assert "my dog is called Rex" in prompt[-1].text
    assert prompt[-1].text.endswith("What is my dog called?")
    assert state["messages"][-2].text == prompt[-1].text  # what was sent is what is kept


def test_memory_agent_keeps_owners_apart() -> None:
    book = NoteBook()
    book.add("The safe opens with 1234.", "ann")
    model = ListModel(answers=[say("I do not know.")])
    memory_agent(model, book, owner="bob").invoke(ask("How does the safe open?"))
    assert "1234" not in str(model.seen)


def test_memory_agent_lets_the_model_take_notes() -> None:
    book = NoteBook()
    model = ListModel(answers=[call("save_note", text="Ann likes tea."), say("I will remember.")])
    memory_agent(model, book, use_tools=True).invoke(ask("I like tea. I am Ann."))
    assert book.all()[0][1] == "Ann likes tea."


def test_unusable_checkpoint_file_is_told_in_words(tmp_path: Path) -> None:
    from mixquant_agents import MixQuantError

    with pytest.raises(MixQuantError, match="cannot keep checkpoints"):
        tool_agent(ListModel(answers=[]), [add], checkpointer=tmp_path / "no" / "state.db")


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
