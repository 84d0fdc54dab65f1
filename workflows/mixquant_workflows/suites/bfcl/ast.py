"""BFCL v4, single turn: does the model name the right functions with the right values (or none)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.messages.utils import convert_to_messages

from mixquant_workflows.suites.base import Answer, Case, ScriptedTurn, Verdict
from mixquant_workflows.suites.bfcl.schema import tool_name, tool_of
from mixquant_workflows.suites.bfcl.truth import call_of
from mixquant_workflows.suites.digests import BFCL
from mixquant_workflows.suites.packages import BFCL_REQUIREMENT, bfcl, check_data, package_folder

__all__ = ["AST_CATEGORIES", "BfclAst"]

AST_CATEGORIES = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
)
_NO_CALL = ("irrelevance", "live_irrelevance")


class BfclAst:
    """One or more of BFCL's single-turn categories. One model step; its calls go to the official AST checker."""

    one_answer = True
    documented_misses: Mapping[str, str] = {
        "simple_java_36": "a list of 'any' is read as text by the checker, but the truth holds a number and a boolean",
        "simple_java_64": "the truth gives a field as bare text, which the checker takes for a list of letters",
        "simple_java_65": "a list of 'any' is read as text by the checker, but the truth holds booleans",
        "live_simple_106-63-0": "two required parameters have no allowed value in the ground truth",
        "live_simple_112-68-0": "five required parameters have no allowed value in the ground truth",
        "live_multiple_862-181-3": "the ground truth demands a parameter that the function does not have",
        "live_multiple_964-207-0": "the ground truth names a parameter 'question', the function has only 'statement'",
    }

    def __init__(self, name: str, categories: Sequence[str] = AST_CATEGORIES) -> None:
        self.name = name
        self.categories = tuple(categories)

    def cases(self) -> list[Case]:
        cases: list[Case] = []
        folder = package_folder("bfcl_eval", BFCL_REQUIREMENT)
        for category in self.categories:
            check_data(folder, BFCL[category], BFCL_REQUIREMENT)
            entries, plain = bfcl().load(category), bfcl().load(category, include_language_specific_hint=False)
            truths = [None] * len(entries) if category in _NO_CALL else bfcl().truths(category)
            for entry, bare, truth in zip(entries, plain, truths, strict=True):
                data = {
                    "category": category,
                    "messages": entry["question"][0],
                    "tools": [tool_of(function, bfcl().json_types) for function in entry["function"]],
                    "functions": bare["function"],
                    "truth": truth["ground_truth"] if truth else None,
                }
                cases.append(Case(entry["id"], data))
        return cases

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        messages = convert_to_messages(case.data["messages"])
        bound = model.bind_tools(case.data["tools"], tool_choice="auto")
        answer: AIMessage = await bound.ainvoke(messages)
        return Verdict(**self.check(case, answer), messages=[answer])

    def check(self, case: Case, answer: AIMessage) -> dict[str, Any]:
        """``score`` and ``why`` of one answer."""
        calls = [{call["name"]: call["args"]} for call in answer.tool_calls]
        if case.data["truth"] is None:
            names = ", ".join(str(call["name"]) for call in answer.tool_calls)
            return {"score": float(not calls), "why": f"called {names}" if calls else ""}
        if not calls:
            return {"score": 0.0, "why": "no call" + (" that is valid" if answer.invalid_tool_calls else "")}
        category = case.data["category"]
        result = bfcl().ast_checker(
            case.data["functions"], calls, case.data["truth"], _language(category), category, "mixquant"
        )
        return {"score": float(result["valid"]), "why": "" if result["valid"] else str(result["error"])[:300]}

    def oracle(self, case: Case) -> list[Answer]:
        if case.data["truth"] is None:
            return ["I have no function for that."]
        functions = {function["name"]: function for function in case.data["functions"]}
        calls = []
        for truth in case.data["truth"]:
            ((name, values),) = truth.items()
            arguments = call_of(values, functions[name]["parameters"]["properties"], case.data["category"])
            calls.append({"name": tool_name(name), "args": arguments})
        return [ScriptedTurn(tool_calls=calls)]


def _language(category: str) -> Any:
    languages = bfcl().language
    if category == "simple_java":
        return languages.JAVA
    return languages.JAVASCRIPT if category == "simple_javascript" else languages.PYTHON
