"""τ²-bench: an agent serves a user under a policy, on a simulated company's systems.

Tasks, environments, policies and the evaluator are the package's own; the agent is :func:`tool_agent`. The user is a
script or a chat model (:mod:`~mixquant_workflows.suites.tau2.user`); the benchmark's tables were made with a large
model as the user, so their scores do not compare with these.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage

from mixquant_agents import MixQuantError
from mixquant_workflows.graphs.tool import tool_agent
from mixquant_workflows.suites.base import Answer, Case, ScriptedTurn, Verdict
from mixquant_workflows.suites.digests import TAU2
from mixquant_workflows.suites.packages import TAU2_REQUIREMENT, check_data, package_folder, tau2
from mixquant_workflows.suites.tau2.messages import environment_tools, from_tau2, to_tau2
from mixquant_workflows.suites.tau2.user import STOP, ModelUser, ScriptedUser, User

__all__ = ["Tau2"]

_GREETING = "Hi! How can I help you today?"
_MAX_STEPS = 30
_SMALL = {"telecom_small": "telecom"}


class Tau2:
    """One task set: ``mock`` (9 tasks), ``airline`` (50), ``retail`` (114) or ``telecom_small`` (20).

    Args:
        user: ``"scripted"``, or ``"model"``: the model under test plays the user, too.
    """

    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def __init__(self, tasks: str, user: Literal["scripted", "model"] = "scripted") -> None:
        self.name = f"tau2_{tasks}" + ("_model_user" if user == "model" else "")
        self.domain = _SMALL.get(tasks, tasks)
        self._tasks = tasks
        self._user = user

    def cases(self) -> list[Case]:
        check_data(package_folder("tau2", TAU2_REQUIREMENT), TAU2[self._tasks], TAU2_REQUIREMENT)
        return [Case(str(task.id), {"task": task}) for task in tau2().tasks(self._tasks)]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        task = case.data["task"]
        environment = await asyncio.to_thread(self._environment, task)  # loading a database takes a second
        prompt = tau2().prompt.format(agent_instruction=tau2().instruction, domain_policy=environment.policy)
        tools = environment_tools(environment)
        graph = tool_agent(model, tools, system=prompt, max_steps=_MAX_STEPS, max_repeats=_MAX_STEPS, in_order=True)
        history = list(task.initial_state.message_history or []) if task.initial_state else []
        messages = from_tau2(history) or [AIMessage(_GREETING)]
        trajectory = history or to_tau2(messages)
        scripted = self._user == "scripted"
        user: User = ScriptedUser(task, environment) if scripted else ModelUser(task, environment, model)
        while True:
            done, reply = await user.next(messages)
            trajectory += [*done, tau2().UserMessage(role="user", content=reply)]
            if reply == STOP:
                break
            asked = [*messages, HumanMessage(reply)]
            state = await graph.ainvoke({"messages": asked}, {"recursion_limit": 4 * _MAX_STEPS})
            messages = state["messages"]
            trajectory += to_tau2(messages[len(asked) :])
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
        """The agent's part of the ground truth; where the user's part comes, the agent asks for it."""
        if self._user == "model":
            raise MixQuantError(f"suite {self.name!r} has no ground truth to replay: its user is a model")
        criteria = case.data["task"].evaluation_criteria
        answers: list[Answer] = []
        asks = False
        for action in criteria.actions or []:
            if action.requestor == "user":
                answers += [] if asks else ["Please do that on your device."]
            else:
                answers.append(ScriptedTurn(tool_calls=[{"name": action.name, "args": dict(action.arguments)}]))
            asks = action.requestor == "user"
        if not answers:  # one task of the mock domain says only what must be true at the end
            answers += [
                ScriptedTurn(
                    tool_calls=[
                        {
                            "name": "update_task_status",
                            "args": {"task_id": a["task_id"], "status": a["expected_status"]},
                        }
                    ]
                )
                for a in (
                    item.arguments for item in criteria.env_assertions or [] if item.func_name == "assert_task_status"
                )
            ]
        final = "Done. " + " ".join(str(info) for info in criteria.communicate_info or [])
        return [*answers, final, *["Is there anything else?"] * 8]
