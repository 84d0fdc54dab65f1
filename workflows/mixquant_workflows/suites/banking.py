"""τ³-bench's banking_knowledge, its retrieval: does an agent find the documents that a customer's case needs?

97 cases over 698 documents, each case labelled with the documents it requires. Conversation and bookings are not run
(the package's environment needs the framework it is written for), so the score is the recall of those labels.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
from collections.abc import Mapping

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage

from mixquant_agents import MixQuantError
from mixquant_tools.retrieval import Document, DocumentIndex
from mixquant_workflows.graphs.retrieval import retrieval_agent
from mixquant_workflows.suites.base import Answer, Case, Verdict
from mixquant_workflows.suites.digests import BANKING
from mixquant_workflows.suites.packages import check_data, package_folder

__all__ = ["BankingKnowledge"]

_REQUIREMENT = "inspect-evals==0.26.0"
_FOLDER = "tau2/data/domains/banking_knowledge"
_SYSTEM = (
    "You work for a bank. Search its documents for everything that is needed to serve this customer rightly, "
    "with several searches in different words. Then say in one sentence what to do."
)


class BankingKnowledge:
    """The cases, each with the customer's own instructions as the question. Measure ``all_found``: every document."""

    name = "banking_knowledge"
    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def cases(self) -> list[Case]:
        folder = package_folder("inspect_evals", _REQUIREMENT)
        check_data(folder, BANKING, _REQUIREMENT)
        tasks = json.loads((folder / _FOLDER / "tasks.json").read_text())
        return [
            Case(
                task["id"],
                {"needs": str(task["user_scenario"]["instructions"]), "documents": task["required_documents"]},
            )
            for task in tasks
        ]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        index = await asyncio.to_thread(_index)
        graph = retrieval_agent(model, index, system=_SYSTEM, max_chars=3_000)
        question = HumanMessage(f"The customer's situation, in the customer's own briefing:\n\n{case.data['needs']}")
        state = await graph.ainvoke({"messages": [question]})
        required = set(case.data["documents"])
        missing = required - {source["path"] for source in state["sources"]}
        recall = 1 - len(missing) / len(required)
        why = f"{len(missing)} of {len(required)} documents not found, such as {min(missing)}" if missing else ""
        return Verdict(score=recall, why=why, messages=state["messages"], measures={"all_found": float(not missing)})

    def oracle(self, case: Case) -> list[Answer]:
        raise MixQuantError(
            f"suite {self.name!r} has no ground truth of calls: what to search for is the model's choice"
        )


@functools.cache
def _index() -> DocumentIndex:
    path = package_folder("inspect_evals", _REQUIREMENT) / _FOLDER / "documents.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return DocumentIndex(Document(item["id"], item["content"], title=item["title"]) for item in json.load(file))
