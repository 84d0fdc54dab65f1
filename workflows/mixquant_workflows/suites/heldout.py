"""The held-out suites of the embedded model's training: schemas, words and phrasings that it never saw.

Tasks and judging are those of ``training/`` in the repository, which is not part of the installed package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage

from mixquant_agents.errors import MissingDependencyError
from mixquant_workflows.suites.base import Answer, Case, ScriptedTurn, Verdict

__all__ = ["HeldOut", "converted"]

TASKS = 300
"""Of each suite; of chat prompts there are fewer."""


class HeldOut:
    """One suite of ``training/suites.py``; 300 tasks, or the 50 chat prompts. Nothing is forgiven in a call.

    Raises:
        MissingDependencyError: this is not run from the repository's root.
    """

    one_answer = True
    documented_misses: Mapping[str, str] = {}

    def __init__(self, name: str) -> None:
        self.name = name

    def cases(self) -> list[Case]:
        tasks = _suites().tasks(self.name, TASKS)
        return [Case(f"{self.name}_{number}", {"task": task}) for number, task in enumerate(tasks)]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        task = case.data["task"]
        tools = [{"type": "function", "function": schema} for schema in task.tools]
        bound = model.bind_tools(tools, tool_choice="auto") if tools else model
        answer: AIMessage = await bound.ainvoke(converted(task.messages))
        return Verdict(**self.check(case, answer), messages=[answer])

    def check(self, case: Case, answer: AIMessage) -> dict[str, Any]:
        """``score`` and ``why`` of one answer."""
        calls = [{"name": call["name"], "arguments": call["args"]} for call in answer.tool_calls]
        broken = bool(answer.invalid_tool_calls)
        right, why = _suites().verdict(
            case.data["task"], str(answer.text), calls, not broken, called=broken or bool(calls)
        )
        return {"score": float(right), "why": why}

    def oracle(self, case: Case) -> list[Answer]:
        wanted = case.data["task"].wanted
        if not wanted:
            return ["Here is what I know about it."]
        return [ScriptedTurn(tool_calls=[{"name": call["name"], "args": call["arguments"]} for call in wanted])]


def _suites() -> Any:
    root = Path.cwd()
    if not (root / "training" / "suites.py").is_file():
        raise MissingDependencyError(
            f"the held-out suites are made by training/ of the repository, which {root} does not hold; "
            "clone it and run this command from its root"
        )
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return importlib.import_module("training.suites")


def converted(messages: list[dict[str, Any]]) -> list[AnyMessage]:
    """The template's messages as LangChain's; call ids are counted."""
    found: list[AnyMessage] = []
    asked: list[str] = []
    for message in messages:
        match message["role"]:
            case "system":
                found.append(SystemMessage(message["content"]))
            case "user":
                found.append(HumanMessage(message["content"]))
            case "tool":
                found.append(ToolMessage(message["content"], tool_call_id=asked.pop(0)))
            case _:
                calls = [
                    {"name": call["name"], "args": call["arguments"], "id": f"call_{len(found)}_{place}"}
                    for place, call in enumerate(message.get("tool_calls") or [])
                ]
                asked = [str(call["id"]) for call in calls]
                found.append(AIMessage(message["content"], tool_calls=calls))
    return found
