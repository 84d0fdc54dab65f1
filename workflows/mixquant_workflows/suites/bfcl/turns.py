"""BFCL v4, multi-turn: a user speaks several times, the model works on simulated systems with state."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.tools import BaseTool, StructuredTool

from mixquant_workflows.graphs.tool import tool_agent
from mixquant_workflows.suites.base import Answer, Case, ScriptedTurn, Verdict
from mixquant_workflows.suites.bfcl.schema import tool_name, tool_of
from mixquant_workflows.suites.digests import BFCL
from mixquant_workflows.suites.packages import BFCL_REQUIREMENT, bfcl, check_data, package_folder

__all__ = ["TURN_CATEGORIES", "BfclTurns", "Systems", "call_text", "parse_call"]

TURN_CATEGORIES = (
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
_run_numbers = itertools.count()


class BfclTurns:
    """BFCL's multi-turn categories on :func:`tool_agent`; state and answers go to the official checker."""

    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def __init__(self, name: str, categories: Sequence[str] = TURN_CATEGORIES) -> None:
        self.name = name
        self.categories = tuple(categories)

    def cases(self) -> list[Case]:
        cases: list[Case] = []
        folder = package_folder("bfcl_eval", BFCL_REQUIREMENT)
        for category in self.categories:
            check_data(folder, BFCL[category], BFCL_REQUIREMENT)
            for entry, truth in zip(bfcl().load(category), bfcl().truths(category), strict=True):
                cases.append(Case(entry["id"], {"entry": entry, "truth": truth["ground_truth"], "category": category}))
        return cases

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        entry = case.data["entry"]
        systems = Systems(entry, "long_context" in case.data["category"])
        functions = list(entry["function"])
        messages: list[AnyMessage] = []
        calls_by_turn: list[list[list[str]]] = []
        for number, turn in enumerate(entry["question"]):
            added = (entry.get("missed_function") or {}).get(str(number))
            if added:
                functions += added
            texts = [message["content"] for message in turn] or [bfcl().new_functions_prompt]
            messages += [HumanMessage(text) for text in texts]
            graph = tool_agent(
                model,
                systems.tools(functions),
                system="",
                max_steps=bfcl().step_limit + 1,
                max_repeats=bfcl().step_limit,
                in_order=True,
            )
            state = await graph.ainvoke({"messages": messages}, {"recursion_limit": 4 * bfcl().step_limit})
            new, messages = state["messages"][len(messages) :], state["messages"]
            calls_by_turn.append(
                [_texts(message) for message in new if isinstance(message, AIMessage) and message.tool_calls]
            )
        return Verdict(**self._check(case, calls_by_turn, systems), messages=messages)

    def _check(self, case: Case, calls_by_turn: list[list[list[str]]], systems: Systems) -> dict[str, Any]:
        """The official verdict on all calls, by turn and step. The checker runs them again on systems of its own, which
        must then be in the same state as ours: else the model saw other answers than it is judged by."""
        entry, truth, category = case.data["entry"], case.data["truth"], case.data["category"]
        # The checker keeps its systems in module globals under this name; without a fresh one a case would find the
        # state that an earlier run left behind.
        name = f"mixquant_{next(_run_numbers)}"
        try:
            result = bfcl().turn_checker(copy.deepcopy(calls_by_turn), truth, copy.deepcopy(entry), category, name)
            reference_systems = {key: system for key, system in bfcl().state.items() if key.startswith(f"{name}_eval_")}
        finally:
            for key in [key for key in bfcl().state if key.startswith(name + "_")]:
                del bfcl().state[key]
        if not result["valid"]:
            return {"score": 0.0, "why": f"{result['error_type']}: {result['error_message']}"[:300]}
        by_class = {type(system).__name__: system for system in reference_systems.values()}
        different = [kind for kind, system in systems.by_class.items() if _public(system) != _public(by_class[kind])]
        return {"score": float(not different), "why": f"our {different} differ from the checker's" if different else ""}

    def oracle(self, case: Case) -> list[Answer]:
        entry = case.data["entry"]
        methods = Systems(entry, "long_context" in case.data["category"]).methods
        answers: list[Answer] = []
        for turn in case.data["truth"]:
            calls = [parse_call(text, methods) for text in turn]
            if calls:
                answers.append(ScriptedTurn(tool_calls=[{"name": name, "args": args} for name, args in calls]))
            answers.append("Done." if calls else "I cannot do that with what I know.")
        return answers


class Systems:
    """One case's simulated systems, each called through ``getattr``."""

    def __init__(self, entry: Mapping[str, Any], long_context: bool) -> None:
        self.methods: dict[str, Callable[..., Any]] = {}
        self.by_class: dict[str, Any] = {}
        for name in entry["involved_classes"]:
            system = getattr(importlib.import_module(bfcl().class_modules[name]), name)()
            if name not in bfcl().stateless:
                config = copy.deepcopy(entry["initial_config"].get(name, {}))
                system._load_scenario(config, long_context=long_context)
            self.by_class[name] = system
            for method, function in inspect.getmembers(system, predicate=inspect.ismethod):
                if not method.startswith("_"):
                    self.methods[method] = function

    def tools(self, functions: Sequence[Mapping[str, Any]]) -> list[BaseTool]:
        """LangChain tools for these function descriptions."""
        return [self._tool(function) for function in functions]

    def _tool(self, function: Mapping[str, Any]) -> BaseTool:
        definition = tool_of(function, bfcl().json_types)["function"]
        method = self.methods[function["name"]]

        def call(**arguments: Any) -> str:
            try:
                result = method(**arguments)
            except Exception as error:  # as BFCL's own runner does: the model reads what went wrong
                return f"Error during execution: {error}"
            if isinstance(result, str):
                return result
            return _json(result) if isinstance(result, dict) else str(result)

        return StructuredTool(
            name=definition["name"],
            description=definition["description"],
            args_schema=definition["parameters"],
            func=call,
        )


def _public(system: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(system).items() if not key.startswith("_")}


def _json(result: Any) -> str:
    try:
        return json.dumps(result)
    except TypeError:
        return str(result)


def parse_call(text: str, methods: Mapping[str, Callable[..., Any]]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call written in Python; positional arguments get their names from the method."""
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"{text[:100]!r} is not a call")
    names = list(inspect.signature(methods[call.func.id]).parameters)
    arguments = {name: ast.literal_eval(value) for name, value in zip(names, call.args, strict=False)}
    arguments |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    return tool_name(call.func.id), arguments


def call_text(name: str, arguments: Mapping[str, Any]) -> str | None:
    """A call in Python, as the official checker reads (and runs) it; ``None`` if a name in it is no plain name, because
    that text would then be code of the model's own."""
    if not all(part.isidentifier() for part in (name, *arguments)):
        return None
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _texts(message: AIMessage) -> list[str]:
    texts = [call_text(call["name"], call["args"]) for call in message.tool_calls]
    return [text for text in texts if text is not None]
