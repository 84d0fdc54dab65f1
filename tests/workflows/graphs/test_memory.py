"""The memory agent: old talk is summarised and recalled, owners stay apart, notes come to an end."""

from __future__ import annotations

from graph_doubles import CONFIG, answers_to_calls, ask
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from list_model import ListModel, call, say

from mixquant_tools.retrieval import NoteBook
from mixquant_workflows import memory_agent


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


def test_memory_agent_recalls_without_touching_the_rest_of_a_message() -> None:
    book = NoteBook()
    book.add("The barn is red.")
    picture = {"type": "image", "url": "http://127.0.0.1/barn.png"}
    asked = HumanMessage([{"type": "text", "text": "Which barn?"}, picture], name="ann", additional_kwargs={"x": 1})
    state = memory_agent(ListModel(answers=[say("Red.")]), book).invoke({"messages": [asked]})
    message = state["messages"][0]
    assert "The barn is red." in message.text
    assert message.content[-1] == picture
    assert (message.name, message.additional_kwargs["x"]) == ("ann", 1)
