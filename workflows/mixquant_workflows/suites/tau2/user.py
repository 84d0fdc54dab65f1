"""The two users of τ²-bench: a script, and a chat model under the benchmark's own instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from mixquant_workflows.graphs.steps import last_answer
from mixquant_workflows.graphs.tool import tool_agent
from mixquant_workflows.suites.packages import tau2
from mixquant_workflows.suites.tau2.messages import environment_tools, to_tau2

__all__ = ["STOP", "ModelUser", "ScriptedUser", "User"]

STOP = "###STOP###"
_MAX_TURNS = 20
_MAX_ACTIONS = 10


class User(Protocol):
    """Whom the agent serves."""

    async def next(self, messages: Sequence[AnyMessage]) -> tuple[list[Any], str]:
        """What the user does by itself (in τ²'s messages) and then says; :data:`STOP` ends the talk."""
        ...


class ScriptedUser:
    """Says its scenario, does on its own devices what the ground truth says as soon as it is spoken to, agrees twice to
    what is proposed, and leaves. The same for every agent; a large model would be more human and more helpful."""

    def __init__(self, task: Any, environment: Any) -> None:
        self._scenario = str(task.user_scenario.instructions)
        self._actions = list(task.evaluation_criteria.actions or [])
        self._environment = environment
        self._turns = 0

    async def next(self, messages: Sequence[AnyMessage]) -> tuple[list[Any], str]:
        self._turns += 1
        if self._turns == 1:
            return [], f"This is my situation and what I want:\n{self._scenario}"
        while self._actions and self._actions[0].requestor == "assistant":
            self._actions.pop(0)
        done: list[Any] = []
        while self._actions and self._actions[0].requestor == "user":
            done += self._act(self._actions.pop(0), len(self._actions))
        if done:
            return done, "I have done that. Please go on if anything is left to do."
        asked = [index for index, message in enumerate(messages) if isinstance(message, HumanMessage)]
        acted = any(isinstance(message, ToolMessage) for message in messages[asked[-1] :]) if asked else False
        left = any(action.requestor == "user" for action in self._actions)
        finished = (acted and not left) or self._turns > (_MAX_TURNS if left else 3)
        return [], STOP if finished else "Yes, please go ahead and do it now."

    def _act(self, action: Any, number: int) -> list[Any]:
        package = tau2()
        call = package.ToolCall(
            id=f"user-{number}", name=action.name, arguments=dict(action.arguments), requestor="user"
        )
        return [package.UserMessage(role="user", tool_calls=[call]), self._environment.get_response(call)]


class ModelUser:
    """A chat model under the benchmark's own user instructions; it may use the user's tools where the domain has
    some."""

    def __init__(self, task: Any, environment: Any, model: BaseChatModel) -> None:
        try:
            self._tools = environment_tools(environment, "user")
        except ValueError:  # how τ² says that the domain has none
            self._tools = []
        simulator = tau2().UserSimulator(
            instructions=str(task.user_scenario), tools=environment.get_user_tools() if self._tools else None
        )
        self._graph = tool_agent(
            model, self._tools, system=simulator.system_prompt, max_steps=_MAX_ACTIONS, in_order=True
        )
        self._messages: list[AnyMessage] = []
        self._turns = 0

    async def next(self, messages: Sequence[AnyMessage]) -> tuple[list[Any], str]:
        self._turns += 1
        if self._turns > _MAX_TURNS:
            return [], STOP
        self._messages.append(HumanMessage(str(last_answer(messages).text) or "…"))
        state = await self._graph.ainvoke({"messages": self._messages}, {"recursion_limit": 5 * _MAX_ACTIONS})
        new, self._messages = state["messages"][len(self._messages) :], state["messages"]
        text = str(last_answer(self._messages).text)
        stops = any(mark in text for mark in (STOP, "###TRANSFER###", "###OUT-OF-SCOPE###"))
        done = to_tau2(
            [message for message in new if not (isinstance(message, AIMessage) and message is new[-1])], "user"
        )
        return done, STOP if stops or not text.strip() else text
