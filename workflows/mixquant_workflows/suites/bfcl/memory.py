"""BFCL v4, memory: an agent talks for hours, writes down what matters, and is asked about it days later."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage

from mixquant_agents import MixQuantError
from mixquant_workflows.graphs.steps import last_answer
from mixquant_workflows.graphs.tool import tool_agent
from mixquant_workflows.suites.base import Answer, Case, Verdict
from mixquant_workflows.suites.bfcl.turns import Systems
from mixquant_workflows.suites.digests import BFCL
from mixquant_workflows.suites.packages import BFCL_REQUIREMENT, bfcl, check_data, package_folder

__all__ = ["BfclMemory"]


class BfclMemory:
    """155 questions on five scenarios of about ten earlier conversations each, on one memory backend.

    The first question of a scenario waits for its conversations to be held; what the agent wrote down then serves all
    of its questions. Each model (so, each policy) has a memory of its own.

    Args:
        backend: ``"kv"`` (keys and values, found by BM25; needs ``rank-bm25``) or ``"rec_sum"`` (one running summary).
    """

    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def __init__(self, backend: str) -> None:
        self.name = f"bfcl_memory_{backend}"
        self._category = f"memory_{backend}"
        self._held: dict[tuple[int, str], asyncio.Task[Path]] = {}
        self._before: dict[str, list[Mapping[str, Any]]] = {}

    def cases(self) -> list[Case]:
        check_data(package_folder("bfcl_eval", BFCL_REQUIREMENT), BFCL["memory"], BFCL_REQUIREMENT)
        entries = bfcl().load(self._category)
        truths = {truth["id"]: truth["ground_truth"] for truth in bfcl().truths(self._category)}
        self._before = {}
        cases: list[Case] = []
        for entry in entries:
            if "prereq" in entry["id"]:
                self._before.setdefault(entry["scenario"], []).append(entry)
            else:
                truth = truths[entry["id"].replace(self._category, "memory")]
                cases.append(Case(entry["id"], {"entry": entry, "truth": truth}))
        return cases

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        entry = case.data["entry"]
        key = (id(model), entry["scenario"])
        if key not in self._held:
            self._held[key] = asyncio.create_task(self._converse(entry["scenario"], model))
        kept = await asyncio.shield(self._held[key])
        with tempfile.TemporaryDirectory(prefix="mixquant-bench-") as name:
            await asyncio.to_thread(shutil.copytree, kept, name, dirs_exist_ok=True)
            messages, _ = await self._talk(entry, model, Path(name))
        answer = str(last_answer(messages).text)
        result = bfcl().agentic_checker(answer, case.data["truth"])
        why = "" if result["valid"] else f"wanted one of {case.data['truth']}, got {answer[:120]!r}"
        return Verdict(score=float(result["valid"]), why=why[:300], messages=messages)

    async def _converse(self, scenario: str, model: BaseChatModel) -> Path:
        """Hold a scenario's conversations; the folder with what was written down."""
        folder = Path(tempfile.mkdtemp(prefix="mixquant-memory-"))
        for entry in self._before[scenario]:
            _, memory = await self._talk(entry, model, folder)
            await asyncio.to_thread(memory._flush_memory_to_local_file)
        return folder

    async def _talk(self, entry: Mapping[str, Any], model: BaseChatModel, folder: Path) -> tuple[list[AnyMessage], Any]:
        """One conversation: its messages, and the memory after it."""
        config = {"model_result_dir": folder, "test_id": entry["id"], "scenario": entry["scenario"]}
        (backend,) = entry["involved_classes"]
        systems = await asyncio.to_thread(Systems, {**entry, "initial_config": {backend: config}}, False)
        memory = systems.by_class[backend]
        system, turns = _split(entry["question"])
        prompt = bfcl().memory_prompt(self._category, entry["scenario"], memory._dump_core_memory_to_context())
        limit = bfcl().step_limit
        tools = systems.tools(entry["function"])
        graph = tool_agent(
            model, tools, system=f"{prompt}{system}", max_steps=limit + 1, max_repeats=limit, in_order=True
        )
        messages: list[AnyMessage] = []
        for texts in turns:
            asked = [*messages, *(HumanMessage(text) for text in texts)]
            messages = (await graph.ainvoke({"messages": asked}, {"recursion_limit": 4 * limit}))["messages"]
        return messages, memory

    def oracle(self, case: Case) -> list[Answer]:
        raise MixQuantError(
            f"suite {self.name!r} has no ground truth of calls: what to write down is the model's choice"
        )


def _split(question: Sequence[Sequence[Mapping[str, str]]]) -> tuple[str, list[list[str]]]:
    """System text that a question brings along, and the user's texts turn by turn."""
    system = "".join(
        f"\n\n{message['content']}" for turn in question for message in turn if message["role"] == "system"
    )
    return system, [[message["content"] for message in turn if message["role"] == "user"] for turn in question]
