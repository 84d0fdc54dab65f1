"""The retrieval agent: citations are checked, searches are limited, prompts only grow at their end."""

from __future__ import annotations

import itertools
from pathlib import Path

from graph_doubles import INDEX, ask, well_formed
from list_model import ListModel, call, say

from mixquant_workflows import retrieval_agent
from mixquant_workflows.graphs.retrieval import check_citations


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


def test_retrieval_agent_guided_names_the_tool_and_falls_back_to_the_question() -> None:
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


def test_retrieval_agent_s_second_question_extends_the_first_prompt(tmp_path: Path) -> None:
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


def test_citation_of_ten_thousand_digits_is_none() -> None:
    assert check_citations(f"[{'1' * 10_000}] [2]", []) == [{"number": 2, "source": None}]
