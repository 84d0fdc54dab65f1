"""τ²-bench: an agent serves a user under a policy, on a simulated company database.

Tasks, environments, policies and the evaluator are the package's own; the agent is :func:`tool_agent`. The user is
scripted here: it says what its scenario says, agrees twice, and leaves. (The benchmark's own user is a large model;
scores with this one are not those of the paper's tables.)
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool

from mixquant_workflows.bench.digests import TAU2
from mixquant_workflows.bench.packages import TAU2_REQUIREMENT, check_data, package_folder, tau2
from mixquant_workflows.bench.suite import Answer, Case, ScriptedTurn, Verdict
from mixquant_workflows.graphs.tool import tool_agent

__all__ = ["Tau2"]

_GREETING = "Hi! How can I help you today?"
_STOP = "###STOP###"
_MAX_USER_TURNS = 8
_MAX_STEPS = 30


class Tau2:
    """One domain: ``mock`` (9 tasks), ``airline`` (50) or ``retail`` (114)."""

    documented_misses: Mapping[str, str] = {}

    def __init__(self, domain: str) -> None:
        self.name = f"tau2_{domain}"
        self.domain = domain

    def cases(self) -> list[Case]:
        check_data(package_folder("tau2", TAU2_REQUIREMENT), TAU2[self.domain], TAU2_REQUIREMENT)
        return [Case(str(task.id), {"task": task}) for task in tau2().tasks(self.domain)]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        task = case.data["task"]
        environment = await asyncio.to_thread(self._environment, task)  # loading a database takes a second
        prompt = tau2().prompt.format(agent_instruction=tau2().instruction, domain_policy=environment.policy)
        graph = tool_agent(model, _tools(environment), system=prompt, max_steps=_MAX_STEPS, max_repeats=_MAX_STEPS)
        history = list(task.initial_state.message_history or []) if task.initial_state else []
        messages = _from_tau2(history) or [AIMessage(_GREETING)]
        known = len(messages)
        user = _User(task)
        said = user.next(messages)
        while said != _STOP:
            state = await graph.ainvoke(
                {"messages": [*messages, HumanMessage(said)]}, {"recursion_limit": 4 * _MAX_STEPS}
            )
            messages = state["messages"]
            said = user.next(messages)
        trajectory = [*(history or _to_tau2(messages[:known])), *_to_tau2([*messages[known:], HumanMessage(_STOP)])]
        return Verdict(**await asyncio.to_thread(self._check, task, trajectory), messages=messages)

    def _environment(self, task: Any) -> Any:
        environment = tau2().environment(self.domain)()
        state = task.initial_state
        environment.set_state(
            initialization_data=state.initialization_data if state else None,
            initialization_actions=state.initialization_actions if state else None,
            message_history=list(state.message_history or []) if state else [],
        )
        return environment

    def _check(self, task: Any, trajectory: Sequence[Any]) -> dict[str, Any]:
        package = tau2()
        if any(m.role == "assistant" and not m.is_tool_call() and not m.has_text_content() for m in trajectory):
            return {"score": 0.0, "why": "the agent sent an empty message"}
        run = package.SimulationRun(
            id=str(uuid.uuid4()),
            task_id=str(task.id),
            start_time="",
            end_time="",
            duration=0.0,
            termination_reason=package.TerminationReason.USER_STOP,
            messages=list(trajectory),
        )
        reward = package.evaluate(run, task, package.EvaluationType.ALL, False, self.domain)
        failed = {str(getattr(key, "value", key)): value for key, value in (reward.reward_breakdown or {}).items()}
        why = "" if reward.reward >= 1 else ", ".join(f"{key} {value:g}" for key, value in failed.items())
        return {"score": float(reward.reward), "why": why, "measures": failed}

    def oracle(self, case: Case) -> list[Answer]:
        criteria = case.data["task"].evaluation_criteria
        calls = [(action.name, action.arguments) for action in criteria.actions or []]
        if not calls:  # one task of the mock domain says only what must be true at the end
            calls = [
                ("update_task_status", {"task_id": a.arguments["task_id"], "status": a.arguments["expected_status"]})
                for a in criteria.env_assertions or []
                if a.func_name == "assert_task_status"
            ]
        answers: list[Answer] = [ScriptedTurn(tool_calls=[{"name": name, "args": dict(args)}]) for name, args in calls]
        told = "Done. " + " ".join(str(info) for info in criteria.communicate_info or [])
        return [*answers, told, *["Is there anything else?"] * _MAX_USER_TURNS]


class _User:
    """Says its scenario, agrees twice, leaves."""

    def __init__(self, task: Any) -> None:
        self._scenario = str(task.user_scenario.instructions)
        self._turns = 0

    def next(self, messages: Sequence[AnyMessage]) -> str:
        self._turns += 1
        if self._turns == 1:
            return f"This is my situation and what I want:\n{self._scenario}"
        last = [message for message in messages if isinstance(message, HumanMessage)][-1:]
        since = messages[messages.index(last[0]) :] if last else messages
        acted = any(isinstance(message, ToolMessage) for message in since)
        return _STOP if acted or self._turns > 3 else "Yes, please go ahead and do it now."


def _tools(environment: Any) -> list[BaseTool]:
    """The environment's tools; an artifact marks the calls that really reached it."""

    def wrap(name: str, schema: Mapping[str, Any]) -> BaseTool:
        def call(**arguments: Any) -> tuple[str, dict[str, bool]]:
            request = tau2().ToolCall(id="", name=name, arguments=arguments, requestor="assistant")
            response = environment.get_response(request)
            return str(response.content), {"error": bool(response.error)}

        return StructuredTool(
            name=name,
            description=schema["description"],
            args_schema=schema["parameters"],
            func=call,
            response_format="content_and_artifact",
        )

    schemas = [tool.openai_schema["function"] for tool in environment.get_tools()]
    return [wrap(schema["name"], schema) for schema in schemas]


def _to_tau2(messages: Sequence[AnyMessage]) -> list[Any]:
    """The conversation in τ²'s types. Calls that never reached the environment (unknown tools, refused calls) are left
    out, because the evaluator runs every call again and compares the answers."""
    package = tau2()
    answered = {m.tool_call_id: m for m in messages if isinstance(m, ToolMessage) and m.artifact is not None}
    converted: list[Any] = []
    for message in messages:
        if isinstance(message, HumanMessage):
            converted.append(package.UserMessage(role="user", content=str(message.text)))
        elif isinstance(message, AIMessage):
            calls = [call for call in message.tool_calls if str(call["id"]) in answered]
            if not calls:
                if not message.tool_calls and not message.invalid_tool_calls:
                    converted.append(package.AssistantMessage(role="assistant", content=str(message.text)))
                continue
            converted.append(
                package.AssistantMessage(
                    role="assistant",
                    tool_calls=[package.ToolCall(id=c["id"], name=c["name"], arguments=c["args"]) for c in calls],
                )
            )
            for call in calls:
                answer = answered[str(call["id"])]
                error = bool(answer.artifact["error"])
                converted.append(
                    package.ToolMessage(id=call["id"], role="tool", content=str(answer.content), error=error)
                )
    return converted


def _from_tau2(history: Sequence[Any]) -> list[AnyMessage]:
    """A task's earlier conversation as LangChain messages."""
    converted: list[AnyMessage] = []
    for message in history:
        if message.role == "user":
            converted.append(HumanMessage(message.content or ""))
        elif message.role == "tool":
            converted.append(ToolMessage(message.content or "", tool_call_id=message.id))
        else:
            calls = [{"name": c.name, "args": c.arguments, "id": c.id} for c in message.tool_calls or []]
            converted.append(AIMessage(message.content or "", tool_calls=calls))
    return converted
