"""The bundled-tools suite: sixty small tasks for an agent with this project's own tools, checked by value."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage

from mixquant_workflows.graphs.steps import last_answer
from mixquant_workflows.graphs.tool import tool_agent
from mixquant_workflows.suites.base import Answer, Case, ScriptedTurn, Verdict
from mixquant_workflows.suites.bundled.tasks import Task, tasks
from mixquant_workflows.suites.bundled.world import build_world

__all__ = ["BundledTools", "holds"]

SYSTEM = "You are a helpful assistant. Use the tools, then answer with the result."


def holds(text: str, value: str) -> bool:
    """Whether ``text`` holds ``value``: words anywhere in any case, numbers as numbers (``1,591`` is ``1591``;
    ``3.65`` is not ``3.6576``, but ``3.6576`` holds ``3.65``, because expected digits are the leading ones)."""
    if re.fullmatch(r"[\d.]+", value):
        plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
        more = r"" if "." in value else r"(?!\d)(?!\.\d*[1-9])"
        return re.search(rf"(?<![\d.:-]){re.escape(value)}{more}", plain) is not None
    return value.lower() in text.lower()


class BundledTools:
    """Each task has a fresh world of its own; user messages run one after another on :func:`tool_agent`."""

    name = "bundled"
    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def cases(self) -> list[Case]:
        return [Case(task.id, {"task": task}) for task in tasks()]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        task: Task = case.data["task"]
        messages: list[AnyMessage] = []
        missed: list[str] = []
        with tempfile.TemporaryDirectory(prefix="mixquant-bench-") as name:
            tools = await asyncio.to_thread(build_world, Path(name))
            graph = tool_agent(model, [tools[tool] for tool in task.tools], system=SYSTEM, max_steps=6, in_order=True)
            for turn in task.turns:
                state = await graph.ainvoke({"messages": [*messages, HumanMessage(turn.says)]})
                messages = state["messages"]
                answer = last_answer(messages).text
                missed += [f"the answer lacks {value!r}" for value in turn.expects if not holds(answer, value)]
            missed += await asyncio.to_thread(_wrong_files, Path(name, "files"), task)
            # What is said must have been worked out: an answer without the tools it needs is a guess.
            called = {call["name"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls}
            if not called:
                missed.append("no tool was called")
        calls = sum(len(turn.calls) for turn in task.turns)
        required = {call for turn in task.turns for call, _ in turn.calls}
        return Verdict(
            score=float(not missed),
            why="; ".join(missed)[:300],
            messages=messages,
            measures={"right_tools": len(required & called) / len(required), "calls_wanted": float(calls)},
        )

    def oracle(self, case: Case) -> list[Answer]:
        task: Task = case.data["task"]
        answers: list[Answer] = []
        for turn in task.turns:
            answers += [ScriptedTurn(tool_calls=[{"name": name, "args": args}]) for name, args in turn.calls]
            answers.append("It is " + " and ".join(turn.expects) + "." if turn.expects else "Done.")
        return answers


def _wrong_files(folder: Path, task: Task) -> list[str]:
    return [
        f"{path} is not as asked"
        for path, text in task.files
        if not (folder / path).is_file() or (folder / path).read_text().strip() != text.strip()
    ]
