"""What the graphs share: every call has its answer, whatever became of it."""

from __future__ import annotations

from typing import Any

import pytest
from graph_doubles import CONFIG, INDEX, answers_to_calls, ask, half_broken
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from list_model import ListModel, call, say

from mixquant_tools.retrieval import NoteBook
from mixquant_workflows import memory_agent, retrieval_agent, tool_agent


def test_broken_call_beside_a_search_or_a_note_is_answered_too() -> None:
    model = ListModel(answers=[half_broken("search_documents", query="barn"), say("Red [1].")])
    searched = retrieval_agent(model, INDEX).invoke(ask("What colour?"))
    model = ListModel(answers=[half_broken("save_note", text="Ann likes tea."), say("Noted.")])
    noted = memory_agent(model, NoteBook(), use_tools=True).invoke(ask("I like tea."))
    for state in (searched, noted):
        assert answers_to_calls(state) == [("good", "success"), ("bad", "error")]


@pytest.mark.parametrize("kind", ["tool", "memory"])
def test_call_whose_run_was_killed_does_not_spoil_the_thread(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
